"""A search among jobs chooses by validation rows, which costs nothing where nobody searches."""

from __future__ import annotations

import json
import random
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import refused, results, succeed
from sweeps import Finished

from twin_merging.compose import plan
from twin_merging.pipeline import validated
from twin_merging.pipeline.cache import Cache
from twin_merging.pipeline.stage import upstream
from twin_merging.pipeline.stages import Stages
from twin_merging.reporting.results import collect

METHODS = ["finetuned", "task_arithmetic", "twin", "emr"]
OPTUNA = ["hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.sampler.seed=1"]


def stages_of(arguments: list[str]) -> Stages:
    (run,) = plan(arguments, multirun=False).jobs
    return Stages(run, Cache(Path(run.paths.cache), run.cache))


def validation(arguments: list[str]) -> dict:
    stages = stages_of(arguments)
    return stages.get(validated.stage(stages)).json(validated.RECORD)


@pytest.fixture
def need_optuna() -> None:
    if find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        pytest.skip("needs hydra-optuna-sweeper, which is not installed")


@pytest.mark.parametrize("heads", ["oracle", "routed"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_the_validation_score_comes_from_test_rows(method: str, heads: str, reuse: list[str]):
    stages = stages_of([*reuse, f"merge_method={method}", f"evaluation.heads={heads}"])
    needed = upstream(validated.stage(stages))
    assert {stage.name for stage in needed}.isdisjoint({"result", "dynamic"})
    assert {stage.options["split"] for stage in needed if stage.name == "encode"} == {"validation"}


def test_the_score_is_the_same_whatever_the_test_rows_are(reuse: list[str], data: Path, tmp_path: Path):
    """A task's test labels are drawn anew; its experts are trained again, to the same weights."""
    other = shutil.copytree(data, tmp_path / "data")
    path = other / "text/colour/test.jsonl"
    rows, chance = [json.loads(line) for line in path.read_text().splitlines()], random.Random(0)
    path.write_text("".join(json.dumps({**row, "label": chance.choice(["warm", "cold"])}) + "\n" for row in rows))
    twin = ["merge_method=twin", "evaluation.heads=routed"]
    before = validation([*reuse, *twin])
    changed = [f"paths.data={other}" if text.startswith("paths.data=") else text for text in reuse]
    after = validation([*(text for text in changed if "paths.cache" not in text), f"paths.cache={tmp_path}/c", *twin])
    assert after["tasks"] == before["tasks"]
    assert after["average_normalized"] == before["average_normalized"]


def test_rows_are_those_that_the_router_did_not_learn_from(reuse: list[str]):
    found = validation([*reuse, "merge_method=finetuned", "router.holdout=0.25"])
    assert {task["rows"] for task in found["tasks"].values()} == {12}  # of 48
    assert found["average_normalized"] == 100  # an expert beside itself
    trained = [text for text in reuse if not text.startswith("router.")]
    whole = validation([*trained, "merge_method=task_arithmetic", "router=oracle"])
    assert {task["rows"] for task in whole["tasks"].values()} == {48}


def test_whoever_does_not_search_does_not_pay(finished: Finished):
    for result in collect(finished.folder):
        assert "validation" not in result
        assert "validate" not in {stage["name"] for stage in result["stages"]}


def test_a_search_names_its_best_trial_and_what_that_scores_on_test_rows(
    need_optuna: None, reuse: list[str], tmp_path: Path
):
    outcome = succeed(
        "-m", *reuse, *OPTUNA, "hydra.sweeper.n_trials=3", "merge_method=twin", "hydra.sweep.dir=search",
        "merge_method.shared.scaling=interval(0.1,1.0)", "sparsifier.rank=choice(1,4)", folder=tmp_path,
    )  # fmt: skip
    trials = collect(tmp_path / "search")
    assert len(trials) == 3
    best = max(trials, key=lambda trial: trial["validation"]["average_normalized"])
    note = next(line for line in (tmp_path / "search/table.md").read_text().splitlines() if "Best of 3" in line)
    assert (
        f"{best['validation']['average_normalized']:.1f} there, {best['average_normalized']:.1f} on test rows" in note
    )
    chosen = (tmp_path / "search/optimization_results.yaml").read_text()
    assert str(best["validation"]["average_normalized"]) in chosen
    assert outcome.lines("a search")


def test_a_search_for_the_worst_is_refused(need_optuna: None, reuse: list[str], tmp_path: Path):
    search = ["-m", *reuse, "merge_method=twin", "hydra/sweeper=optuna", "sparsifier.rank=choice(1,4)"]
    refused(*search, folder=tmp_path, says=["hydra.sweeper.direction", "minimize", "maximize"])
    refused(*search, *OPTUNA, "router=choice(mlp,tfdif)", folder=tmp_path, says=["router", "tfdif", "nearest:  tfidf"])
    refused(*search, *OPTUNA, "sweep.resume=true", folder=tmp_path, says=["sweep.resume", "known before it starts"])
    assert not results(tmp_path)
