"""Tasks that are evaluated though none of their experts is merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import results, run
from sweeps import Finished


@pytest.mark.parametrize("head", ["expert", "frozen"])
@pytest.mark.parametrize("method", ["task_arithmetic", "twin"])
def test_unseen_task_is_scored_and_not_merged(reuse: list[str], tmp_path: Path, head: str, method: str):
    outcome = run(
        f"merge_method={method}", *reuse, "tasks.unseen=[answer]", f"evaluation.unseen_head={head}", "hydra.run.dir=job", folder=tmp_path
    )  # fmt: skip
    assert outcome.code == 0, outcome.text
    result = json.loads((tmp_path / "job/results.json").read_text())
    assert list(result["tasks"]) == ["colour", "size", "answer"]
    entry = result["tasks"]["answer"]
    assert entry["unseen"] == head
    assert (entry["normalized"] is None) == (head == "frozen")
    seen = [result["tasks"][name]["normalized"] for name in ("colour", "size")]
    assert result["average_normalized"] == pytest.approx(sum(seen) / 2)
    if method == "twin":
        assert len(result["routing"]["unseen"]["answer"]) == 2 == len(result["routing"]["task_names"])


def test_the_head_of_an_unseen_task_is_that_of_its_own_expert(reuse: list[str], finished: Finished, tmp_path: Path):
    """θ₀ is the same whichever experts merge, so that the head alone decides."""
    outcome = run("merge_method=pretrained", *reuse, "tasks.unseen=[answer]", "hydra.run.dir=job", folder=tmp_path)
    assert outcome.code == 0, outcome.text
    entry = json.loads((tmp_path / "job/results.json").read_text())["tasks"]["answer"]
    before = results(finished.folder)["pretrained", "oracle"]["tasks"]["answer"]
    assert {key: entry[key] for key in before} == before


def test_gamma_of_one_expert_is_that_expert(reuse: list[str], tmp_path: Path):
    wanted = ["merge_method=task_arithmetic", "merge_method.scaling=1", "merge_method.gamma=[0,1,0]"]
    outcome = run(*wanted, *reuse, "hydra.run.dir=job", folder=tmp_path)
    assert outcome.code == 0, outcome.text
    result = json.loads((tmp_path / "job/results.json").read_text())
    assert result["tasks"]["size"]["normalized"] == pytest.approx(100, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["merge_method=finetuned", "tasks.unseen=[answer]"], "tasks.unseen"),
        (["merge_method=twin", "tasks.unseen=[answer]", "router=oracle"], "oracle with tasks.unseen"),
        (["merge_method=twin", "tasks.unseen=[colour,size,answer]"], "no task is left to merge"),
        (["merge_method=task_arithmetic", "merge_method.gamma=[1]"], "merge_method.gamma"),
        (["merge_method=twin", "tasks.unseen=[anser]"], "answer"),
    ],
)
def test_what_unseen_cannot_be(small: list[str], tmp_path: Path, arguments: list[str], says: str):
    overrides = [text for text in small if not (arguments[-1].startswith("router") and text.startswith("router."))]
    outcome = run(*arguments, *overrides, folder=tmp_path)
    assert outcome.code == 2
    assert says in outcome.text
