from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console
from synthetic import TASKS, make_result, make_task_unknown

from twin_merging.reporting.report import print_report, report
from twin_merging.reporting.results import write
from twin_merging.reporting.tables import MISSING, OFFLINE_WARNING
from twin_merging.reporting.unknown_figures import unknown_figures
from twin_merging.reporting.unknown_tables import methods_of, unknown_tables, write_unknown_tables

NAMES = list(TASKS)[:5]
KINDS = dict.fromkeys(NAMES, "accuracy")


def evaluated(label: str = "twin (svd rank 16)", heads: str = "routed", seed: int = 0, **changes) -> dict:
    return make_result(label, heads, seed, KINDS, task_unknown=make_task_unknown(NAMES), **changes)


def records(table) -> list[dict]:
    return table.records()


def test_results_without_this_evaluation_have_no_such_table(tmp_path):
    assert unknown_tables([make_result(), make_result(task_unknown=None)]) == {}
    assert write_unknown_tables({}, tmp_path) == []


def test_oracle_and_routed_jobs_of_one_method_share_one_row():
    tables = unknown_tables([evaluated(heads="oracle"), evaluated(heads="routed"), evaluated("task_arithmetic")])
    assert len(methods_of([evaluated(heads="oracle"), evaluated(heads="routed")])) == 1
    routes = records(tables["task_unknown_routes"])
    assert [(row["method"], row["task"]) for row in routes] == [
        (method, task) for method in ("twin (svd rank 16)", "task_arithmetic") for task in NAMES
    ]
    assert all(row["warning"] == OFFLINE_WARNING for row in routes)


def test_the_values_behind_the_cells_are_those_of_the_record():
    result = evaluated()
    tables, record = unknown_tables([result]), result["task_unknown"]
    for row, name in zip(records(tables["task_unknown_routes"]), NAMES, strict=True):
        cost = record["cost"]["tasks"][name]
        assert row["lost by heads"] == cost["lost_by_heads"]
        assert row["lost by weights"] == cost["lost_by_weights"]
        assert row["routed right"] == 1 - cost["wrong"] / cost["rows"]
        assert (row["still right by routed head"], row["still right by own head"]) == (1, 6)
    for row, entry in zip(records(tables["task_unknown_noise"]), record["noise"], strict=True):
        assert row["share of wrong labels"] == entry["share"]
        assert row["ECE"] == entry["ece"]
        assert row[NAMES[1]] == entry["by_task"][NAMES[1]]
    for row, (name, entry) in zip(
        records(tables["task_unknown_new_domain"]), record["new_domain"].items(), strict=True
    ):
        assert (row["left out"], row["AUROC"], row["median of new rows"]) == (name, 0.85, entry["new"]["quantiles"][2])
        assert row["known rows routed right"] == entry["accuracy"]
    calibration = [record["router"]["calibration"], *record["answers"].values()]
    for row, entry in zip(records(tables["task_unknown_calibration"]), calibration, strict=True):
        assert [row[key] for key in ("rows", "right", "mean confidence", "ECE")] == [
            entry[key] for key in ("rows", "accuracy", "confidence", "ece")
        ]


def test_the_confusion_has_shares_and_counts():
    result = evaluated()
    table = unknown_tables([result])["task_unknown_confusion"]
    router = result["task_unknown"]["router"]
    for row, record in enumerate(records(table)):
        assert record["true task"] == NAMES[row]
        assert [record[f"{name} rows"] for name in NAMES] == router["counts"][row]
        assert [record[f"{name} share"] for name in NAMES] == router["shares"][row]
    assert table.rows[-1][-1].text == "100.0 (200)"


def test_methods_of_other_tasks_leave_columns_empty():
    two = make_result(
        "ties", "routed", 0, dict.fromkeys(NAMES[:2], "accuracy"), task_unknown=make_task_unknown(NAMES[:2], False)
    )
    table = unknown_tables([evaluated(), two])["task_unknown_confusion"]
    assert [cell.text for cell in table.rows[-1][2:]] == [
        *(cell.text for cell in table.rows[-1][2:4]),
        MISSING,
        MISSING,
        MISSING,
    ]
    assert len(table.rows) == len(NAMES) + 2


def test_seeds_are_joined_to_means():
    first, second = evaluated(seed=0), evaluated(seed=1)
    second["task_unknown"]["cost"]["tasks"][NAMES[0]]["lost_by_heads"] = 0.02
    row = records(unknown_tables([first, second])["task_unknown_routes"])[0]
    assert row["lost by heads"] == pytest.approx(0.01)
    assert row["lost by heads ±"] > 0.01


def test_where_routes_decide_on_no_weights_that_column_is_empty():
    result = make_result("task_arithmetic", "routed", 0, KINDS, task_unknown=make_task_unknown(NAMES, mixed=False))
    table = unknown_tables([result])["task_unknown_routes"]
    place = [column.head for column in table.columns].index("lost by weights")
    assert {row[place].text for row in table.rows} == {MISSING}


def test_a_regression_has_no_right_answers():
    result = evaluated()
    cost = result["task_unknown"]["cost"]["tasks"][NAMES[0]]
    cost["wrong_routes"] = {"rows": 10, "absolute_error": {"expert": 0.1, "oracle": 0.2, "routed": 2.0}}
    assert records(unknown_tables([result])["task_unknown_routes"])[0]["still right by own head"] is None


def test_two_tasks_have_no_new_domain(tmp_path):
    names = NAMES[:2]
    unknown = make_task_unknown(names, new_domain=False)
    result = make_result("twin", "routed", 0, dict.fromkeys(names, "accuracy"), task_unknown=unknown)
    assert "task_unknown_new_domain" not in unknown_tables([result])
    drawn = unknown_figures(result, "twin", tmp_path)
    assert {path.name for path in drawn if path.suffix == ".png"} == {
        "reliability_twin.png", "wrong_routes_twin.png", "label_noise_twin.png",
    }  # fmt: skip


def test_the_report_has_all_tables_and_pictures(tmp_path):
    write(tmp_path / "0", evaluated(heads="oracle"))
    write(tmp_path / "1", evaluated(heads="routed"))
    found = report(tmp_path)
    names = {path.name for path in found.tables}
    assert {
        "task_unknown.md",
        "task_unknown_routes.csv",
        "task_unknown_noise.csv",
        "task_unknown_new_domain.csv",
    } <= names
    text = (tmp_path / "task_unknown.md").read_text()
    assert text.count("### Task unknown") == 5
    assert text.count(OFFLINE_WARNING) == 5
    with (tmp_path / "task_unknown_routes.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(NAMES)
    stems = [path.stem for path in found.figures if path.suffix == ".png"]
    assert [stem for stem in stems if stem.startswith(("reliability", "wrong", "label", "new"))] == [
        f"{kind}_twin_svd_rank_16" for kind in ("reliability", "wrong_routes", "label_noise", "new_domain")
    ]
    console = Console(width=200, file=io.StringIO(), color_system=None)
    print_report(found, console)
    assert "what the wrong routes cost" in console.file.getvalue()  # type: ignore[attr-defined]


def test_words_of_pictures_are_text(tmp_path):
    drawn = unknown_figures(evaluated(), "twin (svd rank 16)", tmp_path)
    svgs = [path.read_text() for path in drawn if path.suffix == ".svg"]
    assert len(svgs) == 4
    for text in svgs:
        assert "twin (svd rank 16), seed 0" in text
        assert OFFLINE_WARNING.replace("'", "&#x27;") in text or OFFLINE_WARNING in text
    assert all(name in svgs[3] for name in NAMES)
