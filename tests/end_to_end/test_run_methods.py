"""Options of the methods, by run.py on the tiny tasks: each changes what it says and nothing else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import refused, results, succeed
from safetensors.torch import load_file
from sweeps import Finished

from twin_merging.compose import plan
from twin_merging.pipeline import compute
from twin_merging.pipeline.cache import Cache
from twin_merging.pipeline.stages import Stages


def only(folder: Path) -> dict:
    """The result of the one job below ``folder``."""
    (result,) = results(folder).values()
    return result


def test_perfect_routing_of_uncompressed_knowledge_gives_the_experts_back(reuse: list[str], tmp_path: Path):
    succeed("merge_method=twin", "router=oracle", "sparsifier=none", *cut(reuse), folder=tmp_path)
    result = only(tmp_path)
    assert result["average_normalized"] == pytest.approx(100, abs=1e-2)
    assert result["routing"]["accuracy"] == 1
    assert result["routing"]["temperature"] is None
    assert "oracle router" in result["label"]


def cut(arguments: list[str]) -> list[str]:
    """``arguments`` without those of the MLP router and of the SVD."""
    return [argument for argument in arguments if not argument.startswith(("router.", "sparsifier."))]


def test_scaling_from_a_grid_is_the_best_on_validation(reuse: list[str], finished: Finished, tmp_path: Path):
    grid = [0.1, 0.5, 3.0]
    succeed("merge_method=task_arithmetic", f"merge_method.grid={grid}", *reuse, folder=tmp_path)
    result = only(tmp_path)
    (choice,) = [choice for choice in result["choices"] if choice["what"] == "scaling"]
    assert choice["split"] == "validation"
    assert [float(value) for value in choice["scores"]] == grid
    assert choice["scores"][str(choice["chosen"])] == max(choice["scores"].values())
    fixed = results(finished.folder)["task_arithmetic", "oracle"]
    assert (result["average_normalized"] == fixed["average_normalized"]) == (choice["chosen"] == 0.3)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "regmean"])
def test_a_grid_tries_what_each_of_its_values_merges_to(method: str, reuse: list[str]):
    grid = [0.1, 0.5, 1.0]
    (run,) = plan([f"merge_method={method}", f"merge_method.grid={grid}", *reuse], multirun=False).jobs
    stages = Stages(run, Cache(Path(run.paths.cache)))
    key = getattr(run.merge_method, "grid_of", "scaling")
    candidates = list(compute._candidates(stages, run.merge_method, key))
    assert [value for value, _ in candidates] == grid
    for value, weights in candidates:
        expected = compute._merge(stages, replace(run.merge_method, **{key: value}))
        assert weights.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5)
    first, last = (candidates[place][1] for place in (0, -1))
    assert any(not torch.equal(first[name], last[name]) for name in first)


@pytest.mark.parametrize("setting", ["sparsifier.fraction=0.1", "sparsifier.budget=40000", "sparsifier.rank=1"])
def test_stronger_compression_stores_fewer_bytes(setting: str, reuse: list[str], finished: Finished, tmp_path: Path):
    arguments = [argument for argument in reuse if not argument.startswith("sparsifier.")]
    succeed("merge_method=twin", setting, *arguments, folder=tmp_path)
    rank_4 = results(finished.folder)["twin", "oracle"]["bytes_stored"]
    one = results(finished.folder)["pretrained", "oracle"]["bytes_stored"]
    assert one < only(tmp_path)["bytes_stored"] < rank_4
    assert setting.removeprefix("sparsifier.").replace("=", " ") in only(tmp_path)["label"]


def test_another_shared_expert_and_a_calibrated_router(reuse: list[str], tmp_path: Path):
    shared = "merge_method@merge_method.shared=weight_averaging"
    succeed("merge_method=twin", shared, "router.temperature=null", "router.layer=0", *reuse, folder=tmp_path)
    result = only(tmp_path)
    assert "weight_averaging" in result["label"]
    whats = {choice["what"]: choice for choice in result["choices"]}
    assert whats["temperature of the router"]["split"] == "validation"
    assert result["routing"]["temperature"] == pytest.approx(whats["temperature of the router"]["chosen"])
    assert result["provenance"]["config"]["merge_method"]["shared"] == {"name": "weight_averaging"}


def test_what_is_excluded_stays_as_before_fine_tuning(reuse: list[str], finished: Finished, tmp_path: Path):
    known = set((finished.cache / "merge").iterdir())
    succeed("merge_method=weight_averaging", "parameters.exclude=['.*bias.*']", *reuse, folder=tmp_path)
    (new,) = set((finished.cache / "merge").iterdir()) - known
    merged = load_file(new / "encoder.safetensors")
    start = load_file(next((finished.cache / "base").glob("*/encoder.safetensors")))
    same = {name for name in start if torch.equal(merged[name], start[name])}
    biases = {name for name in start if "bias" in name}
    assert biases
    assert biases <= same
    assert not {name for name in same - biases if "query.weight" in name}


def test_group_wise_merging_takes_the_same_route_with_other_weights(
    reuse: list[str], finished: Finished, tmp_path: Path
):
    succeed("merge_method=twin", "inference=group_wise", "inference.groups=1", *reuse, folder=tmp_path)
    result, exact = only(tmp_path), results(finished.folder)["twin", "oracle"]
    assert result["routing"]["confusion"] == exact["routing"]["confusion"]
    assert result["tasks"] != exact["tasks"]
    assert result["label"] == "twin (svd rank 4, 1 groups)"


def test_few_experts_a_row_are_reported_and_any_plan_gives_the_same_scores(
    reuse: list[str], finished: Finished, tmp_path: Path
):
    exact = results(finished.folder)["twin", "oracle"]
    assert exact["routing"]["dropped"] == 0
    outcome = succeed("merge_method=twin", "inference.top_k=1", "inference.explain=true", *reuse, folder=tmp_path)
    assert 0 < only(tmp_path)["routing"]["dropped"] < 1
    assert "gathered" in outcome.text
    cache = tmp_path / "dense/cache"
    shutil.copytree(finished.cache, cache)
    shutil.rmtree(cache / "dynamic")
    shutil.rmtree(cache / "result")
    arguments = [*(argument for argument in reuse if "paths.cache" not in argument), f"paths.cache={cache}"]
    succeed("merge_method=twin", "inference.plan=dense", *arguments, folder=tmp_path / "dense")
    for name, task in only(tmp_path / "dense")["tasks"].items():
        assert task["raw"] == pytest.approx(exact["tasks"][name]["raw"], abs=1e-4)


def test_what_is_below_the_routers_layer_may_be_the_shared_experts(reuse: list[str], tmp_path: Path):
    early = ["merge_method=twin", "router.layer=1", *reuse]
    for name in ("mixed", "shared"):
        (tmp_path / name).mkdir()
    succeed(*early, folder=tmp_path / "mixed")
    succeed(*early, "inference.lower=shared", folder=tmp_path / "shared")
    mixed, shared = only(tmp_path / "mixed"), only(tmp_path / "shared")
    assert mixed["routing"]["confusion"] == shared["routing"]["confusion"]
    assert mixed["tasks"] != shared["tasks"]
    assert [result["label"] for result in (mixed, shared)] == [
        "twin (svd rank 4)",
        "twin (svd rank 4, lower blocks shared)",
    ]
    refused(
        "merge_method=twin",
        "inference.lower=shared",
        *reuse,
        folder=tmp_path,
        says=["inference.lower", "router=mlp_early"],
    )
