"""The items of the image tasks: what the paper prints, who sees test inputs, and both items on a tiny encoder."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from backbones.tiny_images import save_colours, save_encoder

from twin_merging.config.data_methods import AdaMerging
from twin_merging.evaluation.leaks import TEST_INPUTS, leaks
from twin_merging.registry import CONFIGS
from twin_merging.reporting.tables import RANDOM_WARNING
from twin_merging.reproducing import cli
from twin_merging.reproducing.cells import Plan, plan_item
from twin_merging.reproducing.item import load_item
from twin_merging.reproducing.running import Done
from twin_merging.reproducing.tables import item_table

TABLE = load_item("table_3")
PAPER = {row.head: row.paper for row in TABLE.rows if row.paper}
# Accuracies of ViT-B/32 (SUN397, Cars, RESISC45, EuroSAT, SVHN, GTSRB, MNIST, DTD): Yang et al., 2024a and b.
PUBLISHED = {
    "fine-tuned": (75.0, 78.3, 95.2, 99.0, 97.3, 98.9, 99.6, 79.7),
    "Pretrained": (63.2, 59.8, 60.7, 46.0, 31.6, 32.5, 48.2, 43.9),
    "AdaMerging (layer-wise ++, test inputs)": (66.7, 68.4, 82.3, 94.3, 89.6, 89.0, 98.3, 60.6),
    "Surgery (test inputs)": (69.9, 71.0, 88.9, 98.2, 91.8, 96.5, 98.8, 73.7),
}


def plan_on(suite: str, *given: str) -> Plan:
    return plan_item(TABLE, suite, given, None)


def test_what_the_paper_prints_agrees_with_its_text():
    assert len(PAPER) == 8
    of_twin, of_surgery = PAPER["Twin-Merging (90% compressed)"], PAPER["Surgery (test inputs)"]
    assert of_twin["average"] - PAPER["Task Arithmetic"]["average"] == pytest.approx(18.83)
    assert (of_twin["average"], of_twin["vram"]) == (95.33, 5.0)
    assert (of_surgery["average"], of_surgery["vram"]) == (94.04, 32.4)
    assert of_twin["time"] == 47 * 60 + 22
    assert of_surgery["time"] == 215 * 60 + 1
    assert PAPER["Fine-tuned"]["vram"] == pytest.approx(8 * PAPER["Pretrained"]["vram"])


def test_the_note_on_published_accuracies_recomputes():
    (note,) = (note for note in TABLE.notes if "authors print" in note)
    experts = PUBLISHED["fine-tuned"]
    for head, scores in PUBLISHED.items():
        if head in PAPER:
            average = 100 * fmean(own / expert for own, expert in zip(scores, experts, strict=True))
            assert f"{average:.1f} " in note
            assert abs(average - PAPER[head]["average"]) > 0.5


def test_every_cell_composes_and_can_be_held_against_the_paper():
    plan = plan_on("vision_clip", "paths.data=DIR")
    assert plan.comparable
    assert len(plan.cells) == 12
    assert plan.tasks == ("sun397", "stanford_cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")
    assert not plan_on("vision_clip", "paths.data=DIR", "backbone.pretrained=null").comparable


@pytest.mark.parametrize("suite", ["vision_clip", "vision_small"])
def test_names_say_what_is_seen_and_how_long_it_learns(suite: str):
    named = {"test inputs": 0, "held-out inputs": 0}
    for cell in plan_on(suite, "paths.data=DIR").cells:
        method, name = cell.run.merge_method, cell.row.head_on(suite)
        for words in named:
            named[words] += words in name
        assert leaks(cell.run) == ([TEST_INPUTS] if "test inputs" in name else []), name
        learned = getattr(method, "merge", method)
        if isinstance(learned, AdaMerging):
            assert learned.inputs == ("test" if "test inputs" in name else "validation")
            assert method.inputs == learned.inputs
            assert learned.steps == (50 if "quick" in name else 500)
            assert learned.granularity == ("task_wise" if "task-wise" in name else "layer_wise")
            assert learned.plus_plus == ("++" in name)
    assert named == {"test inputs": 4, "held-out inputs": 2}


def test_suites_of_rows_are_experiments():
    suites = {suite for row in TABLE.rows for suite in row.by_suite}
    assert suites == {"vision_small"}
    assert all((CONFIGS / "exp" / f"{suite}.yaml").is_file() for suite in suites)


def made_up(device: str, **more: Any) -> dict[str, Any]:
    tasks = {name: {"metric": "accuracy", "raw": 0.5, "normalized": 60.0} for name in ("mnist", "dtd")}
    return {
        "average_normalized": 60.0, "seconds": 90.0, "peak_memory": 4_000_000_000, "tasks": tasks,
        "costs": {"making": {"seconds": 30.0}}, "provenance": {"device": device}, **more,
    }  # fmt: skip


def heads_and_texts(plan: Plan, result: dict[str, Any]) -> dict[str, str]:
    """The first row's cells by their columns' heads."""
    table = item_table(plan, Done({cell.name: result for cell in plan.cells}))
    return dict(zip([column.head for column in table.columns], [cell.text for cell in table.rows[0]], strict=True))


def test_memory_of_a_gpu_stands_beside_the_papers_and_that_of_the_host_alone():
    plan = plan_on("vision_clip", "paths.data=DIR")
    on_gpu, on_cpu = (heads_and_texts(plan, made_up(device)) for device in ("cuda:0", "cpu"))
    assert on_gpu["VRAM"] == "4.00 / 3.60 / +0.40"
    assert "peak memory (RAM)" not in on_gpu
    assert on_cpu["VRAM"] == "– / 3.60 / –"
    assert on_cpu["peak memory (RAM)"] == "4.00"
    for texts in (on_gpu, on_cpu):
        assert texts["time"] == "90.0 / 1128.00 / -1038.0"
        assert texts["making it"] == "30.0"  # which the paper does not print
        assert texts["DTD"] == "50.0"
    without = heads_and_texts(plan, made_up("cpu", peak_memory=0))  # a run on the CPU of a machine with a GPU
    assert "peak memory (RAM)" not in without


def test_random_weights_are_warned_of():
    plan = plan_on("vision_clip", "paths.data=DIR")
    cell = plan.cells[0].name
    assert item_table(plan, Done({cell: made_up("cpu")})).warning is None
    assert item_table(plan, Done({cell: made_up("cpu", random_weights=True)})).warning == RANDOM_WARNING


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that make of vision_small three tasks of colours."""
    place = tmp_path_factory.mktemp("images")
    data, encoder = save_colours(place / "data"), save_encoder(place / "dinov2", "dinov2")
    shutil.copytree(data / "vision/a", data / "vision/c")
    return [
        "--suite", "vision_small", f"paths.data={data}", f"backbone.pretrained={encoder}", f"paths.cache={place / 'cache'}",
        "tasks.names=[a,b,c]", "tasks.corrupt=0.05", "tasks.rows={train:48,validation:24,test:24}", "finetune.epochs=4",
        "finetune.lr=3.0e-3", "finetune.head_lr=1.0e-2", "finetune.batch_size=8", "backbone.image_size=16", "precision=fp32",
        "router.epochs=10", "device=cpu",
    ]  # fmt: skip


def test_table_3_on_a_tiny_encoder(given: list[str], tmp_path: Path):
    assert cli.main(["table_3", *given, f"paths.outputs={tmp_path}"]) == 0
    folder = tmp_path / "reproduce/table_3/vision_small"
    markdown = (folder / "table.md").read_text()
    assert "not comparable with the paper's numbers, which are CLIP ViT-B/32's" in markdown
    assert r"AdaMerging (layer-wise ++, test inputs), quick: 50 steps \[a\]" in markdown
    assert r"AdaMerging (layer-wise ++, held-out inputs), quick: 50 steps |" in markdown
    assert r"\[a\] Sees test inputs" in markdown
    assert r"94.04 \[2\]" in markdown
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    records = json.loads((folder / "cells.json").read_text())
    assert len(rows) == len(records) == 12
    for row, record in zip(rows, records, strict=True):
        result = json.loads((folder / record["results"]).read_text())
        assert row["method"].startswith(record["row"])
        assert float(row["time ours"]) == pytest.approx(result["seconds"])
        assert float(row["making ours"]) == pytest.approx(result["costs"]["making"]["seconds"])
        assert float(row["ram ours"]) == pytest.approx(result["peak_memory"] / 1e9)
        assert "vram ours" not in row
        assert float(row["b ours"]) == pytest.approx(100 * result["tasks"]["b"]["raw"])
        static = row["method"] in ("Pretrained", "Fine-tuned")
        assert (float(row["making ours"]) == 0) == static
        assert float(row["time ours"]) > float(row["making ours"])
    papers = [row["vram paper (CLIP ViT-B/32)"] for row in rows]
    assert [float(text) for text in papers if text] == [3.6, 28.8, 3.6, 3.6, 3.6, 3.6, 32.4, 5.0]


def test_figure_4_on_a_tiny_encoder(given: list[str], tmp_path: Path):
    assert cli.main(["figure_4", *given, f"paths.outputs={tmp_path}"]) == 0
    folder = tmp_path / "reproduce/figure_4/vision_small"
    with (folder / "table.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert len(rows) == 12  # of 2 and of 3 tasks
    stored = {name: float(row["stored ours"]) for name, row in rows.items()}
    assert stored["Task Arithmetic, 3 tasks"] < 1.1 * stored["Task Arithmetic, 2 tasks"]
    assert stored["Fine-tuned, 3 tasks"] == pytest.approx(1.5 * stored["Fine-tuned, 2 tasks"], rel=0.02)
    between = stored["Twin-Merging (90% compressed), 3 tasks"]
    assert stored["Task Arithmetic, 3 tasks"] < between < stored["Fine-tuned, 3 tasks"]
    assert "number of tasks" in (folder / "figure_4.svg").read_text()
    assert (folder / "figure_4.png").stat().st_size > 5000
