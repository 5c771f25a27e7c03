"""The files in experiments/: valid, and the paper's printed numbers agree with each other but for the errata."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import yaml

from twin_merging.errors import UserError
from twin_merging.reproducing.item import EXPERIMENTS, Item, known_items, load_item

OF_THE_PAPER = (
    "table_1", "table_2", "table_2_generative", "table_3", "table_4", "table_5", "table_5_mmlu", "table_6", "table_6_qwen", "table_7", "table_8", "table_9", "table_10",
    "table_11", "table_11_qwen", "table_12",
    "figure_2a", "figure_2b", "figure_3", "figure_4", "figure_5a", "figure_5b", "figure_6", "figure_7",
)  # fmt: skip


def printed(item: Item, head: str, column: str = "average") -> float:
    (row,) = [row for row in item.rows if row.head == head]
    return float(row.paper[column])


def test_all_items_are_there_tables_first():
    assert known_items() == list(OF_THE_PAPER)


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_files_are_valid_and_complete(name: str):
    item = load_item(name)
    assert item.cells > 0
    assert item.kind == "table" or item.draw
    if item.kind == "table":
        columns = [column.key for column in item.columns if column.tasks != (column.key,)]
        ours_alone = name == "table_3"  # which has rows and columns that the paper does not print
        printed = {"average", "time", "vram"} if ours_alone else {*columns, *item.task_heads}
        for row in item.rows:
            assert set(row.paper) == printed or (ours_alone and not row.paper), row.head


def test_averages_of_table_8_recompute_or_are_errata():
    item = load_item("table_8")
    assert len(item.rows) == 9
    assert len(item.task_heads) == 8
    errata = {erratum.row: erratum for erratum in item.errata}
    for row in item.rows:
        average = fmean(float(row.paper[task]) for task in item.task_heads)
        if row.head in errata:
            assert abs(average - float(row.paper["average"])) > 0.5
            assert average == pytest.approx(float(errata[row.head].correct), abs=0.006)
        else:
            assert average == pytest.approx(float(row.paper["average"]), abs=0.011), row.head
    assert set(errata) == {"Pre-trained"}


def test_averages_of_other_tables_are_those_of_table_8_or_errata():
    averages = {row.head: float(row.paper["average"]) for row in load_item("table_8").rows} | {"Pre-trained": 42.70}
    names = {
        "Pretrained": "Pre-trained", "Pretrain": "Pre-trained", "Shared": "Task Arithmetic", "Task-Arithmetic": "Task Arithmetic",
        "Weight Average": "Weight Averaging", "Twin-Merging (Ours)": "Twin-Merging (90% compressed)",
        "Twin-Merging": "Twin-Merging (90% compressed)", "Shared + Dynamic Merging (Twin Merging)": "Twin-Merging (90% compressed)",
        "Twin-Merging + Task-Arithmetic": "Twin-Merging (90% compressed)",
    }  # fmt: skip
    compared = 0
    for table in ("table_2", "table_6", "table_11", "table_12"):
        item = load_item(table)
        errata = {erratum.row: erratum.correct for erratum in item.errata}
        for row in item.rows:
            known = averages.get(names.get(row.head, row.head))
            if known is not None:
                compared += 1
                assert errata.get(row.head, float(row.paper["average"])) == known, (table, row.head)
                assert row.head not in errata or float(row.paper["average"]) != known
    assert compared >= 17


def test_numbers_that_the_text_repeats():
    assert printed(load_item("table_6"), "Dynamic Merging") == 81.47
    assert printed(load_item("table_6"), "Pretrain + Dynamic Merging") == 85.90
    assert printed(load_item("table_12"), "Twin-Merging (group-wise, group number=20)") == 90.02
    assert printed(load_item("table_11"), "Twin-Merging + Ties-Merging") == 96.34
    assert printed(load_item("table_5"), "Twin-Merging") == 55.86
    assert (
        round(
            printed(load_item("table_2"), "Twin-Merging (Ours)") - printed(load_item("table_2"), "Task Arithmetic"), 2
        )
        == 28.34
    )


def broken(tmp_path: Path, **changes: object) -> Path:
    content = yaml.safe_load((EXPERIMENTS / "table_8.yaml").read_text())
    (tmp_path / "table_8.yaml").write_text(yaml.safe_dump({**content, **changes}))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rows": []}, "a list is needed"),
        ({"rows": [{"head": "a", "cell": ["x=1"], "papr": {}}]}, "unknown key"),
        ({"rows": [{"head": "a", "cell": ["x=1"], "paper": {"colla": 1}}], "errata": []}, "no such column"),
        ({"rows": [{"head": "a", "cell": ["x=1"]}] * 2, "errata": []}, "two rows of one head"),
        ({"kind": "picture"}, "not a valid choice"),
        ({"rows": [{"head": "a", "cell": ["x=1"], "by_suite": ["s"]}], "errata": []}, "not a mapping"),
        (
            {"rows": [{"head": "a", "cell": ["x=1"], "by_suite": {"s": {"says": "b"}}}], "errata": []},
            "a key is missing",
        ),
        (
            {"errata": [{"row": "Pre-trained", "column": "average", "printed": 1.0, "note": "n"}]},
            "an erratum of a number",
        ),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, changes: dict, says: str):
    with pytest.raises(UserError, match=says):
        load_item("table_8", broken(tmp_path, **changes))


def test_unknown_items_name_the_nearest():
    with pytest.raises(UserError) as caught:
        load_item("tabel_8")
    assert caught.value.nearest == "table_8"


def test_rows_with_for_are_expanded():
    item = load_item("figure_7")
    assert len(item.rows) == 81
    assert item.rows[0].cell[-1] == "merge_method.gamma=[-2,-2]"
    assert item.rows[0].at["gamma_cola"] == -2
    assert replace(item, seeds=(0, 1)).cells == 81
