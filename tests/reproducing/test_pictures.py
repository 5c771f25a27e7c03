"""Every picture is drawn from made-up results: whole, with missing cells, and with its warning."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from twin_merging.reproducing import pictures
from twin_merging.reproducing.cells import Cell, Plan
from twin_merging.reproducing.item import Row, known_items, load_item

TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
DRAWN = [name for name in known_items() if name.startswith("figure")]


def made_up(row: Row, chance: random.Random) -> dict[str, Any]:
    experts = list(TASKS[: row.at.get("experts", 8)])

    def shares() -> list[float]:
        weights = [chance.random() for _ in experts]
        return [weight / sum(weights) for weight in weights]

    entries = {name: {"metric": "accuracy", "raw": chance.uniform(0.4, 0.95), "normalized": 90.0} for name in TASKS}
    routing = {"task_names": experts, "mean_weights": [shares() for _ in experts], "unseen": {"qnli": shares()}}
    return {
        "average_normalized": chance.uniform(50, 100), "average_raw": chance.uniform(0.4, 0.8), "tasks": entries,
        "bytes_stored": chance.uniform(1e8, 9e8), "routing": routing,
        "costs": {"stored": {"encoder": {"parameters": 10**8}, "exclusive": {"parameters": chance.randrange(10**8)}}},
    }  # fmt: skip


def made_up_plan(name: str, folder: Path, comparable: bool) -> Plan:
    item = load_item(name)
    paths = SimpleNamespace(outputs=str(folder))
    run: Any = SimpleNamespace(paths=paths, backbone=SimpleNamespace(pretrained="asset:minilm"))
    cells = tuple(Cell(row, 0, (), run) for row in item.rows)
    return Plan(item, "glue_minilm", (), comparable, TASKS, cells)


@pytest.mark.parametrize("name", DRAWN)
def test_pictures_are_drawn(name: str, tmp_path: Path):
    chance = random.Random(name)
    plan = made_up_plan(name, tmp_path, comparable=False)
    results = {cell.name: made_up(cell.row, chance) for cell in plan.cells}
    png, svg = pictures.draw(plan, results)
    text = svg.read_text()
    assert png.stat().st_size > 5000
    assert "not comparable with the paper" in text
    assert plan.item.title[:20] in text
    if plan.item.draw == "gamma_grid":
        assert text.count("γ of CoLA") == 4


def test_a_picture_says_what_was_changed(tmp_path: Path):
    plan = made_up_plan("figure_4", tmp_path, comparable=False)
    results = {cell.name: made_up(cell.row, random.Random(0)) for cell in plan.cells}
    changed = replace(plan, given=("paths.data=here", "tasks.rows.test=80"))
    _, svg = pictures.draw(changed, results)
    text = " ".join(svg.read_text().split())
    assert "changed by tasks.rows.test=80: not" in text
    assert "paths.data" not in text


@pytest.mark.parametrize("name", DRAWN)
def test_missing_cells_are_left_out(name: str, tmp_path: Path):
    plan = made_up_plan(name, tmp_path, comparable=True)
    (last,) = plan.cells[-1:]
    png, svg = pictures.draw(plan, {last.name: made_up(last.row, random.Random(0))})
    assert png.exists()
    assert "not comparable" not in svg.read_text()
