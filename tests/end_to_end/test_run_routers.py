"""A router of token ids by run.py: nothing of the shared expert runs for it, and its file routes as it did in the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from commands import numbers, refused, results, succeed
from sweeps import Finished
from test_stage_keys import key
from transformers import AutoTokenizer

from twin_merging.routers.stored import read_router
from twin_merging.tasks.base import Task

TFIDF = ("router=tfidf", "evaluation.heads=oracle,routed")


def without_router(arguments: list[str]) -> list[str]:
    return [argument for argument in arguments if not argument.startswith("router.")]


def file_of(cache: Path, stage: str, name: str, result: dict) -> Path:
    (found,) = [each["key"] for each in result["stages"] if each["name"] == stage]
    return cache / stage / found / name


@pytest.fixture(scope="module")
def routed(reuse: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Twin and a static method under a router of token ids, with both heads; and the command's arguments."""
    folder = tmp_path_factory.mktemp("tfidf")
    arguments = ["-m", "merge_method=twin,task_arithmetic", *TFIDF, *without_router(reuse)]
    succeed(*arguments, "hydra.sweep.dir=sweep", folder=folder)
    return folder, arguments


def test_no_encoder_runs_for_the_router(routed: tuple[Path, list[str]], finished: Finished):
    found, with_states = results(routed[0] / "sweep"), results(finished.folder)
    assert len(found) == 4
    twin = {(stage["name"], stage["label"]) for stage in found["twin", "routed"]["stages"]}
    assert {label for name, label in twin if name == "encode"} == {
        f"test rows by the {name} expert" for name in tiny.TASKS
    }
    before = {(stage["name"], stage["label"]) for stage in with_states["twin", "routed"]["stages"]}
    assert before - twin == {
        ("router", "mlp"), ("encode", "validation rows by the task_arithmetic encoder"),
        ("encode", "test rows by the task_arithmetic encoder"),
        *(("lengths", f"{name}, validation rows") for name in tiny.TASKS),
    }  # fmt: skip
    static = [stage["label"] for stage in found["task_arithmetic", "routed"]["stages"] if stage["name"] == "encode"]
    assert "test rows by the task_arithmetic encoder" in static  # from which its heads answer
    assert "validation rows by the task_arithmetic encoder" not in static


def test_it_routes_and_twin_answers_by_it(routed: tuple[Path, list[str]], finished: Finished):
    found = results(routed[0] / "sweep")
    for job in (("twin", "oracle"), ("twin", "routed"), ("task_arithmetic", "routed")):
        assert found[job]["routing"]["router"] == "tfidf"
        assert found[job]["routing"]["accuracy"] > 0.6
        whats = {choice["what"]: choice["split"] for choice in found[job]["choices"]}
        assert whats["C of the router"] == whats["temperature of the router"] == "validation"
    assert found["task_arithmetic", "oracle"]["routing"] is None
    twin = found["twin", "oracle"]
    assert twin["average_normalized"] > found["task_arithmetic", "oracle"]["average_normalized"]
    assert twin["bytes_stored"] < results(finished.folder)["twin", "oracle"]["bytes_stored"]


def test_its_file_routes_padded_batches_with_special_tokens_as_the_run_did(
    routed: tuple[Path, list[str]], finished: Finished, bert: Path
):
    result = results(routed[0] / "sweep")["twin", "oracle"]
    router = read_router(file_of(finished.cache, "router", "router.safetensors", result))
    tokenizer = AutoTokenizer.from_pretrained(bert)
    keys = {stage["label"]: stage["key"] for stage in result["stages"] if stage["name"] == "data"}
    for name, counts, mean in zip(
        tiny.TASKS, result["routing"]["confusion"], result["routing"]["mean_weights"], strict=True
    ):
        rows = Task.load(finished.cache / "data" / keys[name]).splits["test"].texts
        columns = [list(column) for column in zip(*rows, strict=True)]
        batch = tokenizer(*columns, truncation=True, max_length=20, padding=True, return_tensors="pt")
        weights = router.weights(batch["input_ids"], batch["attention_mask"])
        assert weights.argmax(-1).bincount(minlength=3).tolist() == counts
        torch.testing.assert_close(weights.mean(0), torch.tensor(mean), rtol=0, atol=1e-5)


def test_the_same_command_again_comes_from_the_cache(routed: tuple[Path, list[str]], tmp_path: Path):
    outcome = succeed(*routed[1], "hydra.sweep.dir=sweep", folder=tmp_path)
    assert not outcome.lines("computed in")
    again = results(tmp_path / "sweep")
    for job, result in results(routed[0] / "sweep").items():
        assert numbers(again[job]) == numbers(result)


@pytest.mark.parametrize("setting", ["router.sublinear=false", "router.grid=[1.0]", "router.rows=20", "seed=1"])
def test_a_setting_makes_results_new(setting: str, small: list[str], tmp_path: Path):
    arguments = ["router=tfidf", *without_router(small)]
    assert key([*arguments, setting], tmp_path) != key(arguments, tmp_path) != key(small, tmp_path)


def test_group_wise_and_emr_take_it_too(reuse: list[str], tmp_path: Path):
    arguments = ["router=tfidf", *without_router(reuse)]
    succeed("merge_method=twin", "inference=group_wise", "inference.groups=2", *arguments, folder=tmp_path)
    succeed("merge_method=emr", *arguments, folder=tmp_path)
    found = [json.loads(path.read_text()) for path in tmp_path.rglob("results.json")]
    assert sorted(result["merge_method"] for result in found) == ["emr", "twin"]
    assert all(result["routing"]["accuracy"] > 0.6 for result in found)


def test_the_embeddings_are_a_router_of_its_own(reuse: list[str], tmp_path: Path):
    chosen = ["merge_method=twin", "router=mlp_embedding", *reuse]
    succeed(*chosen, "hydra.run.dir=named", folder=tmp_path)
    succeed("merge_method=twin", "router.layer=0", *reuse, "hydra.run.dir=by_layer", folder=tmp_path)
    named, by_layer = (results(tmp_path / name)["twin", "oracle"] for name in ("named", "by_layer"))
    assert numbers(named) == numbers(by_layer)
    refused(*chosen, "router.layer=3", folder=tmp_path, says=["router.layer", "0 to 2"])


def test_the_shared_expert_runs_no_further_than_to_the_layer_that_is_read(reuse: list[str], tmp_path: Path):
    early = ["-m", "merge_method=twin,task_arithmetic", "evaluation.heads=routed", "router.layer=1", *reuse]
    succeed(*early, "hydra.sweep.dir=sweep", folder=tmp_path)
    found = results(tmp_path / "sweep")
    shared = {
        method: {stage["label"] for stage in found[method, "routed"]["stages"] if "task_arithmetic" in stage["label"]}
        for method in ("twin", "task_arithmetic")
    }
    up_to = "rows by the task_arithmetic encoder, layer 1"
    assert shared["twin"] == {"task_arithmetic", f"validation {up_to}", f"test {up_to}"}
    assert shared["task_arithmetic"] == {
        "task_arithmetic", f"validation {up_to}", "test rows by the task_arithmetic encoder",
    }  # fmt: skip
    routing = [found[method, "routed"]["routing"] for method in ("twin", "task_arithmetic")]
    assert routing[0]["confusion"] == routing[1]["confusion"]  # one router, and the same states either way
