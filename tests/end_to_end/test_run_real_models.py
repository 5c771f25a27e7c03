"""A real encoder on real texts, cut down to a look at each: every method, every part of the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from commands import results, succeed
from sweeps import METHODS

from twin_merging.tasks.offline_text import TASKS

QUICK = (
    "-m", "backbone=minilm", "backbone.max_length=32", f"merge_method={METHODS}", "tasks.limit=48", "finetune.epochs=1",
    "finetune.lr=1e-4", "finetune.batch_size=16", "hydra.sweep.dir=sweep",
)  # fmt: skip


def check(folder: Path, tasks: list[str]) -> dict:
    """What holds of any real run; returns the results by method."""
    found = {method: result for (method, _), result in results(folder / "sweep").items()}
    assert set(found) == set(METHODS.split(","))
    for result in found.values():
        assert list(result["tasks"]) == tasks
        assert all(task["rows"] == 48 for task in result["tasks"].values())
    for task in found["finetuned"]["tasks"].values():
        assert task["normalized"] == (100 if task["reference"] > 0 else None)
    assert found["twin"]["bytes_stored"] < found["finetuned"]["bytes_stored"]
    return found


@pytest.mark.slow
def test_minilm_on_offline_tasks(need_asset: Callable[[str], Path], tmp_path: Path):
    names = ["bbc_topics", "election_tweets", "vader_tweets"]
    folder = need_asset("minilm")
    for name in names:
        need_asset(TASKS[name].asset)
    succeed(*QUICK, "tasks=offline_text", f"tasks.names=[{','.join(names)}]", f"paths.assets={folder}", folder=tmp_path)
    found = check(tmp_path, names)
    assert {task["metric"] for task in found["twin"]["tasks"].values()} == {"accuracy", "pearson"}
    # three subjects as different as these are told apart by a router that saw 48 rows of each
    assert found["twin"]["routing"]["accuracy"] > 0.6


@pytest.mark.slow
def test_minilm_on_glue_rows(need_asset: Callable[[str], Path], shared_data: Path, tmp_path: Path):
    folder = need_asset("minilm")
    arguments = ["tasks=glue", "tasks.names=[mrpc,stsb]", f"paths.data={shared_data}", f"paths.assets={folder}"]
    succeed(*QUICK, *arguments, folder=tmp_path)
    found = check(tmp_path, ["mrpc", "stsb"])
    data = found["twin"]["provenance"]["data"]
    assert "test labels are hidden" in data["mrpc"]["splits"]["test"]
    assert {name: task["metric"] for name, task in found["twin"]["tasks"].items()} == {
        "mrpc": "accuracy_f1",
        "stsb": "pearson_spearman",
    }
