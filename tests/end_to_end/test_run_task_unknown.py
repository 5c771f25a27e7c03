"""``evaluation=task_unknown``: one stream of all tasks' rows, from what other jobs have left in the cache."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
import tiny
from commands import Outcome, numbers, refused, results, succeed
from sweeps import Finished
from test_run_routers import TFIDF, without_router

EVALUATION = ("evaluation=task_unknown", "evaluation.noise=[0.0,0.5]")


def stream_of(job: Path) -> list[dict[str, str]]:
    with (job / "stream.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def job_of(folder: Path, method: str, heads: str) -> Path:
    found = {}
    for path in folder.rglob("results.json"):
        result = json.loads(path.read_text())
        found[result["merge_method"], result["heads"]] = path.parent
    return found[method, heads]


@pytest.fixture(scope="module")
def ran(reuse: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path, list[str]]:
    """Twin and a static method with both heads; and the arguments."""
    folder = tmp_path_factory.mktemp("unknown")
    arguments = ["-m", "merge_method=twin,task_arithmetic", *EVALUATION, "evaluation.heads=oracle,routed", *reuse]
    return succeed(*arguments, "hydra.sweep.dir=sweep", folder=folder), folder / "sweep", arguments


def test_no_encoder_runs_for_it_and_both_heads_share_it(ran: tuple[Outcome, Path, list[str]]):
    stages = [line.split()[0] for line in ran[0].lines("computed in")]
    assert Counter(stages)["unknown"] == 2
    assert set(stages) <= {"result", "unknown", "router", "timing"}


def test_its_scores_are_those_of_jobs_with_oracle_and_with_routed_heads(
    ran: tuple[Outcome, Path, list[str]], finished: Finished
):
    found, before = results(ran[1]), results(finished.folder)
    for method in ("twin", "task_arithmetic"):
        for heads in ("oracle", "routed"):
            record = found[method, heads]["task_unknown"]
            assert record == found[method, "oracle"]["task_unknown"]
            assert found[method, heads]["tasks"] == before[method, heads]["tasks"]
            for name, cost in record["cost"]["tasks"].items():
                assert cost["score"][heads] == before[method, heads]["tasks"][name]["raw"]
                assert cost["score"]["expert"] == before[method, heads]["tasks"][name]["reference"]
            average = record["cost"]["average_normalized"][heads]
            assert average == pytest.approx(before[method, heads]["average_normalized"])


def test_its_routes_are_the_jobs_and_a_router_without_noise_is_the_jobs_own(ran: tuple[Outcome, Path, list[str]]):
    for method in ("twin", "task_arithmetic"):
        result = results(ran[1])[method, "routed"]
        record, routing = result["task_unknown"], result["routing"]
        assert record["router"]["counts"] == routing["confusion"]
        assert record["router"]["accuracy"] == pytest.approx(routing["accuracy"])
        clean, noisy = record["noise"]
        assert (clean["share"], noisy["share"]) == (0.0, 0.5)
        assert clean["accuracy"] == record["router"]["accuracy"]
        assert clean["ece"] == pytest.approx(record["router"]["calibration"]["ece"])
        assert noisy["accuracy"] < clean["accuracy"]
        assert noisy["confidence"] < clean["confidence"]


def test_wrong_routes_are_counted_task_by_task(ran: tuple[Outcome, Path, list[str]]):
    for method, mixed in (("twin", True), ("task_arithmetic", False)):
        record = results(ran[1])[method, "routed"]["task_unknown"]
        for index, (name, cost) in enumerate(record["cost"]["tasks"].items()):
            counts = record["router"]["counts"][index]
            assert cost["wrong"] == sum(counts) - counts[index] == cost["wrong_routes"]["rows"]
            assert (cost["lost_by_weights"] is not None) is mixed
            assert cost["lost"] == pytest.approx(cost["lost_by_heads"] + (cost["lost_by_weights"] or 0))
            assert ("absolute_error" in cost["wrong_routes"]) is (name == "size")
    domains = results(ran[1])["twin", "routed"]["task_unknown"]["new_domain"]
    assert list(domains) == list(tiny.TASKS)
    for name, entry in domains.items():
        assert sum(entry["goes_to"].values()) == entry["rows"] == tiny.ROWS["test"]
        assert name not in entry["goes_to"]
        assert 0 <= entry["auroc"] <= 1


def test_the_stream_has_every_row_once_and_says_what_was_answered(ran: tuple[Outcome, Path, list[str]]):
    rows, result = stream_of(job_of(ran[1], "twin", "routed")), results(ran[1])["twin", "routed"]
    assert len({(row["task"], row["row"]) for row in rows}) == len(rows) == len(tiny.TASKS) * tiny.ROWS["test"]
    assert len({row["task"] for row in rows[:20]}) == len(tiny.TASKS)  # shuffled
    for name in ("colour", "answer"):
        mine = [row for row in rows if row["task"] == name]
        right = sum(row["right"] == "True" for row in mine)
        assert right / len(mine) == pytest.approx(result["tasks"][name]["raw"])
    known = [row for row in rows if row["right"] and row["confidence"]]
    assert len(known) == result["task_unknown"]["answers"]["head"]["rows"]
    wrong = [row for row in rows if row["task"] != row["top_task"]]
    assert len(wrong) == sum(cost["wrong"] for cost in result["task_unknown"]["cost"]["tasks"].values())


def test_the_report_has_its_tables_and_pictures(ran: tuple[Outcome, Path, list[str]]):
    names = {path.name for path in ran[1].iterdir()}
    assert {"task_unknown.md", "task_unknown_confusion.csv", "task_unknown_routes.csv", "task_unknown_calibration.csv", "task_unknown_noise.csv",
            "task_unknown_new_domain.csv"} <= names  # fmt: skip
    stems = {path.stem for path in (ran[1] / "figures").glob("*.png")}
    for kind in ("reliability", "wrong_routes", "label_noise", "new_domain"):
        assert {f"{kind}_twin_svd_rank_4", f"{kind}_task_arithmetic"} <= stems
    assert "what the wrong routes cost" in ran[0].out


def test_the_same_command_again_gives_the_same_bytes(ran: tuple[Outcome, Path, list[str]], tmp_path: Path):
    outcome = succeed(*ran[2], "hydra.sweep.dir=sweep", folder=tmp_path)
    assert not outcome.lines("computed in")
    again = results(tmp_path / "sweep")
    for job, result in results(ran[1]).items():
        assert numbers(again[job]) == numbers(result)
        for key in ("task_unknown", "costs", "inference"):
            assert again[job][key] == result[key]
        files = [job_of(folder, *job) / "stream.csv" for folder in (ran[1], tmp_path / "sweep")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_router_of_token_ids_experts_and_emr_have_it_too(reuse: list[str], tmp_path: Path):
    tfidf = ["evaluation.new_domain=false", "evaluation.timing=null", TFIDF[0], *without_router(reuse)]
    succeed("-m", "merge_method=finetuned,emr", *EVALUATION, *tfidf, "hydra.sweep.dir=sweep", folder=tmp_path)
    found = results(tmp_path / "sweep")
    assert found.keys() == {("finetuned", "routed"), ("emr", "routed")}
    for result in found.values():
        record = result["task_unknown"]
        assert record["new_domain"] is None
        assert record["noise"][0]["accuracy"] == record["router"]["accuracy"] > 0.6
    weights = [float(row["weight"]) for row in stream_of(job_of(tmp_path, "emr", "routed"))]
    assert min(weights) < 0.99  # what the router says, not the one-hot weights that emr makes of it


def test_an_oracle_and_a_single_task_are_refused(reuse: list[str], tmp_path: Path):
    oracle = ["router=oracle", "evaluation=task_unknown", *without_router(reuse)]
    refused(*oracle, "evaluation.heads=oracle", folder=tmp_path, says=["router", "task_unknown", "trained"])
    alone = [argument for argument in reuse if not argument.startswith("tasks.names")]
    refused(
        "evaluation=task_unknown", *alone, "tasks.names=[colour]", folder=tmp_path, says=["tasks.names", "two tasks"]
    )
