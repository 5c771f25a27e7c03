"""The paper's generative tables: what they print agrees, and their cells run on a tiny language model."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from statistics import fmean

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
import tiny_exams
from backbones.tiny_language import save_language

from twin_merging.reproducing import cli
from twin_merging.reproducing.cells import is_neutral, plan_item
from twin_merging.reproducing.item import load_item

GENERATIVE = (
    "table_1",
    "table_2_generative",
    "table_4",
    "table_5_mmlu",
    "table_6_qwen",
    "table_7",
    "table_9",
    "table_10",
    "table_11_qwen",
    "figure_2a",
    "figure_5b",
)


def averages(name: str) -> dict[str, float]:
    item = load_item(name)
    errata = {erratum.row: float(erratum.correct) for erratum in item.errata if erratum.correct is not None}
    return {row.head: errata.get(row.head, float(row.paper["average"])) for row in item.rows}


def test_averages_of_table_9_recompute():
    item = load_item("table_9")
    assert (len(item.rows), len(item.task_heads), item.errata) == (9, 4, ())
    for row in item.rows:
        average = fmean(float(row.paper[task]) for task in item.task_heads)
        assert average == pytest.approx(float(row.paper["average"]), abs=0.011), row.head


def test_other_tables_print_its_averages_or_have_an_erratum():
    known = averages("table_9")
    names = {
        "Twin-Merging (Ours)": "Twin-Merging (rank-16)", "Pretrain": "Pretrained", "Shared": "Task Arithmetic",
        "Shared + Dynamic Merging (Twin Merging)": "Twin-Merging (rank-16)", "Weight Average": "Weight Averaging",
        "Task-Arithmetic": "Task Arithmetic", "Twin-Merging + Task-Arithmetic": "Twin-Merging (rank-16)",
    }  # fmt: skip
    compared = 0
    for table in ("table_2_generative", "table_6_qwen", "table_11_qwen"):
        for head, average in averages(table).items():
            if names.get(head, head) in known:
                compared += 1
                assert average == known[names.get(head, head)], (table, head)
    assert compared == 16


@pytest.mark.parametrize("name", GENERATIVE)
def test_every_cell_composes_and_can_be_held_against_the_paper(name):
    plan = plan_item(load_item(name), None, ["paths.data=DIR", "backbone.trust_remote_code=true"], None)
    assert plan.comparable
    assert all(cell.run.backbone.trust_remote_code for cell in plan.cells)
    assert "mmlu" in plan.tasks or name in ("table_4", "table_10")


def test_another_qwen_is_another_suite():
    assert not is_neutral("backbone=qwen2_5_14b")
    assert not is_neutral("backbone.pretrained=x")
    assert is_neutral("backbone.trust_remote_code=true")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place = tmp_path_factory.mktemp("language")
    base = save_language(place / "base", context=1024, words=tiny_exams.WORDS)
    return [
        "--suite", "generative_smollm2", "--seeds", "0", f"backbone.pretrained={base}", f"paths.data={tiny_exams.save_exams(place / 'exams')}",
        "tasks.names=[mmlu,gsm8k]", "tasks.train_rows=null", "tasks.parts=null", "tasks.learn=null", "finetune.lr=2e-2", "finetune.epochs=8", "finetune.max_length=512",
        "router.source=train", "precision=fp32", "device=cpu", "evaluation=native", f"paths.cache={place / 'cache'}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("table_9", 9),
        ("table_6_qwen", 5),
        ("table_11_qwen", 6),
        ("table_5_mmlu", 6),
        ("table_7", 3),
        ("figure_2a", 9),
        ("figure_5b", 1),
    ],
)
def test_an_item_on_another_suite(name, rows, given, tmp_path):
    assert cli.main([name, *given, f"paths.outputs={tmp_path}"]) == 0
    folder = tmp_path / "reproduce" / name / "generative_smollm2"
    if name.startswith("figure"):
        assert {path.suffix for path in folder.glob(f"{name}.*")} == {".png", ".svg"}
    markdown = (folder / "table.md").read_text()
    assert r"built on the suite generative\_smollm2" in markdown
    assert "not comparable with the paper's numbers, which are Qwen-14B's" in markdown
    assert ("paper (Qwen-14B)" in markdown) == name.startswith("table")
    records = json.loads((folder / "cells.json").read_text())
    assert [record["status"] for record in records] == ["done"] * rows
    if name == "table_7":
        with (folder / "table.csv").open() as file:
            rows = {row["method"]: row for row in csv.DictReader(file)}
        for record in records:
            result, row = json.loads((folder / record["results"]).read_text()), rows[record["row"]]
            shown = [float(row[f"{key} ours"]) for key in ("tokens", "cost", "inference", "average")]
            tokens, making = result["costs"]["training_tokens"]["after_experts"], result["costs"]["making"]["seconds"]
            wanted = [tokens / 1e6, making, result["inference"]["seconds_per_1000"], result["average_normalized"]]
            assert shown == pytest.approx(wanted)
            assert (tokens > 0) == (record["row"] != "Model Merging")
            (line,) = (line for line in markdown.splitlines() if line.startswith(f"| {record['row']} |"))
            assert f"| {tokens / 1e6:.3f} |" in line  # some thousands, in millions
