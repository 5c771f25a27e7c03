"""All methods and both heads from an empty cache, then again from a full one."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import tiny
import yaml
from commands import Outcome, numbers, results, snapshot, succeed
from sweeps import METHODS, SWEEP, Finished

from twin_merging.config import REGISTRIES
from twin_merging.pipeline.environment import resolve_device
from twin_merging.reporting.results import REQUIRED, REQUIRED_OF_TASK

JOBS = {(method, heads) for method in METHODS.split(",") for heads in ("oracle", "routed")}


@pytest.fixture(scope="module")
def again(reuse: list[str], finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path, bool]:
    """The same sweep on the same cache: how it ended, its folder, and whether the cache stayed as it was."""
    folder, before = tmp_path_factory.mktemp("again"), snapshot(finished.cache)
    outcome = succeed(*SWEEP, *reuse, "hydra.sweep.dir=sweep", folder=folder)
    return outcome, folder / "sweep", snapshot(finished.cache) == before


def test_every_job_has_results_with_every_key(finished: Finished):
    found = results(finished.folder)
    assert found.keys() == JOBS
    for result in found.values():
        assert set(REQUIRED) <= result.keys()
        assert list(result["tasks"]) == list(tiny.TASKS)
        assert all(set(REQUIRED_OF_TASK) <= task.keys() for task in result["tasks"].values())
        assert {"config", "versions", "data", "checkpoints", "device", "git_commit"} <= result["provenance"].keys()


def test_results_name_the_device_that_auto_finds(reuse: list[str], tmp_path: Path):
    asked = [argument for argument in reuse if not argument.startswith("device=")]
    succeed("merge_method=pretrained", "device=auto", *asked, folder=tmp_path)
    (result,) = results(tmp_path).values()
    assert result["provenance"]["device"] == str(resolve_device("auto"))


def test_experts_with_their_own_heads_are_exactly_the_reference(finished: Finished):
    result = results(finished.folder)["finetuned", "oracle"]
    assert result["average_normalized"] == 100
    for name, task in result["tasks"].items():
        assert task["normalized"] == 100, name
        assert task["raw"] == task["reference"] > 0.5, name  # the tasks are learnable, so that a ratio means something


def test_twin_with_oracle_heads_beats_what_has_no_exclusive_knowledge(finished: Finished):
    found = results(finished.folder)
    twin, shared = (
        found["twin", "oracle"]["average_normalized"],
        found["task_arithmetic", "oracle"]["average_normalized"],
    )
    assert twin > shared + 10


def test_every_choice_was_made_on_validation_rows(finished: Finished):
    for result in results(finished.folder).values():
        assert {choice["split"] for choice in result["choices"]} == {"validation"}
        for choice in result["choices"]:
            tested = {task: about["fingerprints"]["test"] for task, about in result["provenance"]["data"].items()}
            assert all(tested[task] != fingerprint for task, fingerprint in choice["fingerprints"].items())


def test_confusion_matrix_counts_every_test_row(finished: Finished):
    for heads in ("oracle", "routed"):
        routing = results(finished.folder)["twin", heads]["routing"]
        assert [sum(row) for row in routing["confusion"]] == [tiny.ROWS["test"]] * len(tiny.TASKS)
        right = sum(routing["confusion"][index][index] for index in range(len(tiny.TASKS)))
        assert routing["accuracy"] == pytest.approx(right / (tiny.ROWS["test"] * len(tiny.TASKS)))


def test_report_has_a_row_a_job_in_three_formats_and_figures(finished: Finished):
    with (finished.folder / "table.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(JOBS)
    for name in ("table.md", "table.tex"):
        text = (finished.folder / name).read_text()
        assert all(method.replace("_", "\\_") in text or method in text for method in METHODS.split(","))
    figures = list((finished.folder / "figures").iterdir())
    assert {path.suffix for path in figures} == {".png", ".svg"}
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in figures if path.suffix == ".png")


def test_every_job_keeps_its_metrics_log_and_configuration(finished: Finished):
    for path in finished.folder.rglob("results.json"):
        result, job = json.loads(path.read_text()), path.parent
        lines = [json.loads(line) for line in (job / "metrics.jsonl").read_text().splitlines()]
        scalars = {key: value for line in lines if line["kind"] == "scalars" for key, value in line["values"].items()}
        assert scalars["average_normalized"] == result["average_normalized"]
        assert "average normalized" in (job / "run.log").read_text()
        config = yaml.safe_load((job / "config.yaml").read_text())
        assert set(REGISTRIES) <= config.keys()
        assert config["merge_method"]["name"] == result["merge_method"]
        assert config["evaluation"]["heads"] == result["heads"]


def test_each_expert_was_fine_tuned_once_for_all_jobs(finished: Finished):
    for name in tiny.TASKS:
        assert len(finished.outcome.lines("  expert ", name, "computed in")) == 1


def test_again_gives_the_same_numbers(finished: Finished, again: tuple[Outcome, Path, bool]):
    before, after = results(finished.folder), results(again[1])
    assert after.keys() == before.keys()
    for job in before:
        assert numbers(after[job]) == numbers(before[job])


def test_again_computes_nothing(again: tuple[Outcome, Path, bool]):
    outcome, folder, untouched = again
    assert not outcome.lines("computed in")
    assert untouched
    for result in results(folder).values():
        assert all(stage["cached"] for stage in result["stages"])


def test_the_same_numbers_come_without_a_cache(small: list[str], finished: Finished, tmp_path: Path):
    alone = [argument for argument in small if "tasks.names" not in argument]
    succeed("merge_method=finetuned", *alone, "tasks.names=[answer]", "cache=off", "hydra.run.dir=run", folder=tmp_path)
    before, after = (
        results(folder)["finetuned", "oracle"]["tasks"]["answer"] for folder in (finished.folder, tmp_path)
    )
    assert after == before
    assert not list(tmp_path.rglob("*.safetensors"))
