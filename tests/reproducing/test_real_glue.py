"""A slice of Table 8 on real GLUE rows with a real encoder: three tasks, few rows, the paper's order at its ends."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from twin_merging.reproducing import cli

SLICE = (
    "--suite", "glue_minilm", "--seeds", "0", "tasks.names=[sst2,stsb,qnli]", "tasks.rows={train:600,validation:150,test:200}",
    "finetune.epochs=2", "device=cpu",
)  # fmt: skip


@pytest.mark.slow
def test_twin_is_above_the_static_merges(need_asset: Callable[[str], Path], shared_data: Path, tmp_path: Path):
    folder = need_asset("minilm")
    places = (
        f"paths.data={shared_data}",
        f"paths.assets={folder}",
        f"paths.outputs={tmp_path}",
        f"paths.cache={tmp_path / 'cache'}",
    )
    assert cli.main(["table_8", *SLICE, *places]) == 0
    made = tmp_path / "reproduce/table_8/glue_minilm"
    title = (made / "table.md").read_text()
    assert "not comparable with the paper's numbers" in title
    with (made / "table.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    averages = {name: float(row["average ours"]) for name, row in rows.items()}
    static = [value for name, value in averages.items() if not name.startswith(("Twin", "Fine"))]
    assert averages["Twin-Merging (90% compressed)"] > max(static)
    assert averages["Fine-tuned"] == pytest.approx(100)
    assert averages["Pre-trained"] < max(static)
