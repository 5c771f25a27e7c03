"""Shared experts that are none, methods on matrices, and one vector for all tasks: by run.py on the tiny tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from commands import refused, results, succeed
from safetensors.torch import load_file
from sweeps import Finished

ORACLE = ("router=oracle", "evaluation.heads=oracle")


def every(folder: Path) -> list[dict]:
    """All results below ``folder``, in the order of their jobs."""
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("results.json"))]


def without(arguments: list[str], *prefixes: str) -> list[str]:
    return [argument for argument in arguments if not argument.startswith(prefixes)]


def normalized(result: dict) -> list[float]:
    return [result["tasks"][name]["normalized"] for name in tiny.TASKS]


def shared(names: str) -> str:
    return f"merge_method@merge_method.shared={names}"


def test_a_task_whose_expert_is_the_shared_one_loses_nothing(reuse: list[str], tmp_path: Path):
    which = "merge_method.shared.index=0,2"
    arguments = without(reuse, "router.", "sparsifier.")
    succeed(
        "-m", "merge_method=twin", shared("expert"), which, *ORACLE, *arguments, "sparsifier.rank=1", folder=tmp_path
    )
    found = {result["provenance"]["config"]["merge_method"]["shared"]["index"]: result for result in every(tmp_path)}
    assert set(found) == {0, 2}
    for index, result in found.items():
        assert normalized(result)[index] == pytest.approx(100, abs=1e-4)
        assert "expert + svd rank 1" in result["label"]
    assert normalized(found[0]) != pytest.approx(normalized(found[2]))


def test_dynamic_merging_without_a_shared_expert_and_with_the_pretrained_one(
    reuse: list[str], finished: Finished, tmp_path: Path
):
    succeed("-m", "merge_method=twin", shared("expert,pretrained"), *reuse, folder=tmp_path)
    twin = results(finished.folder)["twin", "oracle"]
    found = {result["provenance"]["config"]["merge_method"]["shared"]["name"]: result for result in every(tmp_path)}
    assert set(found) == {"expert", "pretrained"}
    for name, result in found.items():
        assert f"{name} + svd rank 4" in result["label"]
        assert result["bytes_stored"] == pytest.approx(twin["bytes_stored"], rel=0.01)
        assert normalized(result) != pytest.approx(normalized(twin))


def test_uncompressed_knowledge_gives_the_experts_back_whatever_is_shared(reuse: list[str], tmp_path: Path):
    arguments = without(reuse, "router.", "sparsifier.")
    names = shared("expert,pretrained")
    succeed("-m", "merge_method=twin", names, "sparsifier=none", *ORACLE, *arguments, folder=tmp_path)
    assert [result["average_normalized"] for result in every(tmp_path)] == pytest.approx([100, 100], abs=2e-2)


def test_an_expert_that_is_not_there_is_refused(reuse: list[str], tmp_path: Path):
    says = ["merge_method.index", "2 (answer)"]
    refused("merge_method=expert", "merge_method.index=3", *reuse, folder=tmp_path, says=says)


def test_methods_on_matrices_and_an_expert_are_static(reuse: list[str], finished: Finished, tmp_path: Path):
    succeed("-m", "merge_method=tsv_merge,iso_c,wudi,expert", *reuse, folder=tmp_path)
    found, one = every(tmp_path), results(finished.folder)["task_arithmetic", "oracle"]
    assert {result["bytes_stored"] for result in found} == {one["bytes_stored"]}
    assert len({tuple(normalized(result)) for result in [*found, one]}) == 5
    (expert,) = [result for result in found if result["merge_method"] == "expert"]
    assert normalized(expert)[0] == pytest.approx(100, abs=1e-4)


def test_scaling_of_a_matrix_method_from_a_grid(reuse: list[str], tmp_path: Path):
    succeed("merge_method=iso_c", "merge_method.grid=[0.0,1.0]", *reuse, folder=tmp_path)
    (result,) = every(tmp_path)
    assert [choice["split"] for choice in result["choices"] if choice["what"] == "scaling"] == ["validation"]


def test_emr_with_the_true_task_stores_a_vector_and_a_bit_a_task(reuse: list[str], finished: Finished, tmp_path: Path):
    succeed("merge_method=emr", *ORACLE, *without(reuse, "router."), folder=tmp_path)
    (result,) = every(tmp_path)
    static = results(finished.folder)
    assert result["label"] == "emr (oracle router)"
    assert result["routing"]["accuracy"] == 1
    assert result["average_normalized"] > static["task_arithmetic", "oracle"]["average_normalized"]
    (key,) = [stage["key"] for stage in result["stages"] if stage["name"] == "exclusive"]
    file = finished.cache / "exclusive" / key / "exclusive.safetensors"
    assert result["bytes_stored"] == static["pretrained", "oracle"]["bytes_stored"] + file.stat().st_size
    stored = load_file(file)
    numbers = sum(tensor.numel() for name, tensor in stored.items() if name.endswith(".unified"))
    masks = sum(tensor.nbytes for name, tensor in stored.items() if name.endswith(".masks"))
    assert numbers * 3 / 8 <= masks < 1.01 * numbers * 3 / 8
    assert sum(tensor.nbytes for tensor in stored.values()) == 4 * numbers + masks + 3 * 4


def test_emr_by_the_router(reuse: list[str], tmp_path: Path):
    succeed("-m", "merge_method=emr", "evaluation.heads=oracle,routed", *reuse, folder=tmp_path)
    found = every(tmp_path)
    assert {result["heads"] for result in found} == {"oracle", "routed"}
    for result in found:
        assert result["label"] == "emr"
        assert result["routing"]["accuracy"] > 0.5
        for counts, weights in zip(result["routing"]["confusion"], result["routing"]["mean_weights"], strict=True):
            assert weights == pytest.approx([count / sum(counts) for count in counts])  # whole models, no mixture


def test_emr_of_one_task_is_its_expert(reuse: list[str], tmp_path: Path):
    arguments = [*without(reuse, "router.", "tasks.names"), "tasks.names=[answer]"]
    succeed("merge_method=emr", *ORACLE, *arguments, folder=tmp_path)
    (result,) = every(tmp_path)
    assert result["tasks"]["answer"]["normalized"] == pytest.approx(100, abs=1e-4)


def test_emr_is_no_shared_expert(reuse: list[str], tmp_path: Path):
    refused("merge_method=twin", shared("emr"), *reuse, folder=tmp_path, says=["merge_method.shared.name", "expert"])
