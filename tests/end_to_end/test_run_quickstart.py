"""The README's first command as it stands: real weights, real texts, and what the README says of the result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import ROOT, numbers, results, start

METHODS = ("pretrained", "weight_averaging", "task_arithmetic", "twin", "finetuned")
pytestmark = pytest.mark.slow


def quickstart(folder: Path) -> str:
    process = start("+exp=quickstart", folder=folder)
    out, err = process.communicate(timeout=2400)
    assert process.returncode == 0, out + err
    return out


@pytest.fixture(scope="module")
def runs(need_asset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The command, twice in one folder: the folder and what each printed."""
    need_asset("minilm")
    folder = tmp_path_factory.mktemp("quickstart")
    return folder, quickstart(folder), quickstart(folder)


@pytest.fixture(scope="module")
def folders(runs: tuple[Path, str, str]) -> list[Path]:
    """The folders of both multiruns, in order."""
    return sorted((runs[0] / "outputs/multiruns/quickstart").iterdir())


def test_make_quickstart_is_this_command():
    makefile = (ROOT / "Makefile").read_text()
    assert "\nquickstart: setup" in makefile
    assert "run.py +exp=quickstart\n" in makefile


def test_twin_is_near_its_experts_and_above_every_static_method(folders: list[Path]):
    found = results(folders[0])
    oracle = [found[method, "oracle"]["average_normalized"] for method in METHODS]
    assert oracle == sorted(oracle), dict(zip(METHODS, oracle, strict=True))
    assert oracle[-1] == 100
    assert found["twin", "oracle"]["average_normalized"] >= 98


def test_not_knowing_the_task_costs_twin_little(folders: list[Path]):
    found = results(folders[0])
    assert found["twin", "routed"]["average_normalized"] >= found["twin", "oracle"]["average_normalized"] - 3
    assert found["twin", "routed"]["routing"]["accuracy"] >= 0.96


def test_experts_learn_their_tasks(folders: list[Path]):
    chance = {
        "rotten_tomatoes": 0.5,
        "bbc_topics": 0.26,
        "newsgroups20": 0.07,
        "reuters_r8": 0.53,
        "election_tweets": 0.52,
    }
    for name, task in results(folders[0])["finetuned", "oracle"]["tasks"].items():
        assert task["raw"] > chance[name] + 0.2, name


def test_twin_stores_little_more_than_one_model(folders: list[Path]):
    found = results(folders[0])
    one, twin, all_experts = (found[method, "oracle"]["bytes_stored"] for method in ("pretrained", "twin", "finetuned"))
    assert one < twin < 1.5 * one < all_experts


def test_the_second_run_comes_from_the_cache_with_the_same_numbers(runs: tuple[Path, str, str], folders: list[Path]):
    assert "computed in" in runs[1]
    assert "computed in" not in runs[2]
    first, second = (results(folder) for folder in folders)
    assert first.keys() == second.keys()
    assert len(first) == 10
    for job, result in first.items():
        assert numbers(result) == numbers(second[job])
        assert result["seconds"] == second[job]["seconds"]
    tables = [(folder / "table.csv").read_text() for folder in folders]
    assert tables[0] == tables[1]


def test_what_it_writes_is_where_it_says(runs: tuple[Path, str, str], folders: list[Path]):
    printed = runs[1].replace("\n", "")
    assert folders[0].name in printed
    names = {path.name for path in (folders[0] / "figures").iterdir()}
    assert {"average_normalized.png", "task_bbc_topics.svg", "routing_twin_svd_rank_16.png"} <= names
    assert "offline suite" in (folders[0] / "table.md").read_text()
    assert "offline suite" in runs[1]
    lines = (folders[0] / "8-twin-heads=oracle/metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["kind"] for line in lines} == {"config", "scalars", "table", "image"}
