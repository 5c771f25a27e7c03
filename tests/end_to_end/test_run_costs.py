"""Costs in every results.json: parameters and bytes by part, training tokens, and time per 1000 items."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from commands import numbers, results, succeed
from safetensors import safe_open
from sweeps import Finished
from test_stage_keys import key
from transformers import AutoTokenizer

from twin_merging.compose import plan
from twin_merging.pipeline import timing
from twin_merging.pipeline.cache import Cache
from twin_merging.pipeline.costs import PARTS
from twin_merging.pipeline.stages import Stages
from twin_merging.tasks.base import Task


def file_of(cache: Path, result: dict, stage: str, name: str) -> Path:
    (found,) = [each["key"] for each in result["stages"] if each["name"] == stage]
    return cache / stage / found / name


def tokens(finished: Finished, bert: Path, split: str) -> np.ndarray:
    """Real tokens of a split's rows: tasks × rows."""
    result, tokenizer, found = results(finished.folder)["twin", "routed"], AutoTokenizer.from_pretrained(bert), []
    for stage in result["stages"]:
        if stage["name"] == "data":
            texts = Task.load(finished.cache / "data" / stage["key"]).splits[split].texts
            found.append([len(tokenizer(*row, truncation=True, max_length=20)["input_ids"]) for row in texts])
    return np.array(found)


def test_the_parts_add_up_and_are_where_they_belong(finished: Finished):
    for (method, heads), result in results(finished.folder).items():
        stored = result["costs"]["stored"]
        assert list(stored) == list(PARTS)
        assert sum(part["bytes"] for part in stored.values()) == result["bytes_stored"]
        used = {part for part, size in stored.items() if size["bytes"]}
        expected = {"encoder", "heads"} | ({"exclusive"} if method == "twin" else set())
        assert used == expected | ({"router"} if method == "twin" or heads == "routed" else set())


def test_parameters_are_the_numbers_in_the_files(finished: Finished):
    found = results(finished.folder)
    twin = found["twin", "routed"]
    for part, stage, name in (
        ("exclusive", "exclusive", "exclusive.safetensors"), ("encoder", "merge", "encoder.safetensors"),
    ):  # fmt: skip
        with safe_open(file_of(finished.cache, twin, stage, name), "pt") as file:
            count = sum(file.get_tensor(key).numel() for key in file.keys() if file.get_tensor(key).is_floating_point())  # noqa: SIM118
        assert twin["costs"]["stored"][part]["parameters"] == count > 1000
    encoder = twin["costs"]["stored"]["encoder"]["parameters"]
    assert found["finetuned", "oracle"]["costs"]["stored"]["encoder"]["parameters"] == 3 * encoder
    assert twin["costs"]["stored"]["heads"]["parameters"] == (2 + 1 + 3) * (32 + 1)


def test_training_tokens_are_real_ones_times_epochs(finished: Finished, bert: Path):
    found = results(finished.folder)
    experts = 8 * tokens(finished, bert, "train").sum()
    held = round(0.2 * tiny.ROWS["validation"])
    router = tokens(finished, bert, "validation")[:, held:].sum()
    assert all(result["costs"]["training_tokens"]["experts"] == experts for result in found.values())
    for (method, heads), result in found.items():
        expected = router if method == "twin" or heads == "routed" else 0
        assert result["costs"]["training_tokens"]["router"] == expected
        assert result["costs"]["training_tokens"]["after_experts"] == expected


def test_making_is_what_comes_after_the_experts_without_evaluation(finished: Finished):
    found = results(finished.folder)
    assert found["pretrained", "oracle"]["costs"]["making"]["seconds"] == 0
    twin = found["twin", "routed"]
    stages = ("merge", "basis", "exclusive", "router")
    made = sum(
        each["seconds"]
        for each in twin["stages"]
        if each["name"] in stages or each["label"].startswith("validation rows")
    )
    assert twin["costs"]["making"]["seconds"] == pytest.approx(made)
    assert 0 < twin["costs"]["making"]["peak_memory"] <= twin["peak_memory"]


def test_every_job_is_timed_beside_a_static_encoder(finished: Finished):
    for (method, heads), result in results(finished.folder).items():
        timed = result["inference"]
        assert timed["rows"] == 64
        assert 3 <= timed["rounds"] <= 7
        assert timed["ratio"] == pytest.approx(timed["seconds_per_1000"] / timed["static_seconds_per_1000"])
        if method != "twin" and heads == "oracle":
            assert timed["ratio"] == 1
    twin, static = (results(finished.folder)[method, "routed"]["inference"] for method in ("twin", "task_arithmetic"))
    assert twin["tokens"] == static["tokens"] > 64
    assert twin["ratio"] > 1.05  # it runs the shared encoder to route, and the routed one


def test_the_report_has_a_table_of_costs(finished: Finished):
    text = (finished.folder / "costs.md").read_text()
    assert text.count("| routed |") == 5
    assert "to static" in (finished.folder / "costs.md").read_text()
    assert (
        (finished.folder / "costs.csv").read_text().startswith("method,heads,parameters,bytes stored,training tokens")
    )
    assert "Costs" in finished.outcome.out


def test_machines_that_share_a_cache_do_not_share_times(
    reuse: list[str], finished: Finished, monkeypatch: pytest.MonkeyPatch
):
    (run,) = plan(["merge_method=twin", *reuse], multirun=False).jobs
    stages = Stages(run, Cache(finished.cache))
    timed = results(finished.folder)["twin", "oracle"]["inference"]["machine"]
    assert timed.startswith("cpu: ")
    assert timed.endswith(", 1 thread")
    before, same = (timing.stage(stages).key for _ in range(2))
    assert before == same
    monkeypatch.setattr(timing, "machine", lambda device: f"another {device}")
    assert timing.stage(stages).key != before


def test_timing_is_no_part_of_a_result(reuse: list[str], small: list[str], finished: Finished, tmp_path: Path):
    assert key([*small, "evaluation.timing=7"], tmp_path) == key(small, tmp_path)
    succeed("merge_method=twin", *reuse, "evaluation.timing=7", "hydra.run.dir=seven", folder=tmp_path)
    outcome = succeed("merge_method=twin", *reuse, "evaluation.timing=null", "hydra.run.dir=none", folder=tmp_path)
    assert not outcome.lines("computed in")
    seven, none = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("seven", "none"))
    assert seven["inference"]["rows"] == 7
    assert none["inference"] is None
    for result in (seven, none):
        assert numbers(result) == numbers(results(finished.folder)["twin", "oracle"])
        assert result["costs"] == results(finished.folder)["twin", "oracle"]["costs"]


@pytest.mark.parametrize(
    "way",
    [["inference=group_wise", "inference.groups=2"], ["inference.lower=shared", "router.layer=1"], ["router.layer=0"]],
)
def test_ways_to_route_are_timed(way: list[str], reuse: list[str], tmp_path: Path):
    succeed("merge_method=twin", *way, *reuse, "hydra.run.dir=run", folder=tmp_path)
    assert json.loads((tmp_path / "run/results.json").read_text())["inference"]["ratio"] > 0


def test_what_learns_after_the_experts_counts_its_tokens(
    reuse: list[str], finished: Finished, bert: Path, tmp_path: Path
):
    few = ["merge_method.merge.steps=4", "merge_method.steps=4"]
    classes = [argument for argument in reuse if not argument.startswith("tasks.names")]
    succeed("merge_method=surgery", *few, *classes, "tasks.names=[colour,answer]", "hydra.run.dir=run", folder=tmp_path)
    result = json.loads((tmp_path / "run/results.json").read_text())
    found = result["costs"]["training_tokens"]
    assert found["after_experts"] == found["learned"] > 0
    keys = [each["key"] for each in result["stages"] if each["name"] == "data"]
    assert len(keys) == 2
    tokenizer = AutoTokenizer.from_pretrained(bert)
    means, total = 0.0, 0
    for each in keys:
        texts = Task.load(finished.cache / "data" / each).splits["test"].texts
        count = sum(len(tokenizer(*row, truncation=True, max_length=20)["input_ids"]) for row in texts)
        means, total = means + count / len(texts), total + count
    assert found["learned"] == round(4 * 16 * means) + total


def test_statistics_count_the_rows_that_they_are_taken_over(
    reuse: list[str], finished: Finished, bert: Path, tmp_path: Path
):
    for method, split, rows in (("fisher", "validation", 7), ("regmean", "train", 11)):
        arguments = (f"merge_method={method}", f"merge_method.rows={rows}", *reuse, f"hydra.run.dir={method}")
        outcome = succeed(*arguments, folder=tmp_path)
        assert len(outcome.lines("lengths", "computed in")) == 3
        found = json.loads((tmp_path / method / "results.json").read_text())["costs"]["training_tokens"]
        assert found["after_experts"] == found["learned"] == tokens(finished, bert, split)[:, :rows].sum()
        again = succeed(*arguments[:-1], "seed=1", "experts.seed=0", f"hydra.run.dir={method}1", folder=tmp_path)
        assert not again.lines("lengths", "computed in")


def test_joint_training_beside_an_imported_expert_counts_its_rows(
    small: list[str], finished: Finished, bert: Path, tmp_path: Path
):
    result = results(finished.folder)["twin", "routed"]
    (key,) = [each["key"] for each in result["stages"] if (each["name"], each["label"]) == ("expert", "colour")]
    imported = f"experts.sources={{colour: {finished.cache / 'expert' / key}}}"
    succeed("merge_method=multitask", imported, *small, "finetune.epochs=2", "hydra.run.dir=run", folder=tmp_path)
    found = json.loads((tmp_path / "run/results.json").read_text())["costs"]["training_tokens"]
    assert found == {"experts": None, "multitask": (expected := 2 * tokens(finished, bert, "train").sum()), "router": 0, "learned": 0,
                     "after_experts": expected}  # fmt: skip
