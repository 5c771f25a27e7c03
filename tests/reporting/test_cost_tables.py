from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console
from synthetic import make_costs, make_inference, make_result

from twin_merging.reporting.cost_tables import cost_table, human_count
from twin_merging.reporting.formats import print_table
from twin_merging.reporting.report import report
from twin_merging.reporting.results import write
from twin_merging.reporting.tables import MISSING, OFFLINE_WARNING


def costed(label: str = "twin (svd rank 16)", seed: int = 0, **changes) -> dict:
    return make_result(label, "routed", seed, **({"costs": make_costs(), "inference": make_inference()} | changes))


def test_the_values_behind_the_cells_are_those_of_the_results():
    result = costed()
    table = cost_table([result, make_result("pretrained")])  # the second is of a version without costs
    assert table is not None
    (record,) = table.records()
    assert record == {
        "method": "twin (svd rank 16)", "heads": "routed", "parameters": 22_565_376 + 6_000_000 + 900_000 + 10_000,
        "bytes stored": result["bytes_stored"], "training tokens": 46_500, "training tokens of experts": 384_100,
        "seconds to make": 21.0, "peak memory": 2**30, "seconds per 1000 items": 2.5, "ratio to static": 1.25,
        "warning": OFFLINE_WARNING,
    }  # fmt: skip


def test_seeds_are_joined_to_means():
    results = [costed(seed=seed, inference=make_inference(ratio)) for seed, ratio in ((0, 1.2), (1, 1.4))]
    table = cost_table(results)
    assert table is not None
    assert [record["ratio to static"] for record in table.records()] == [pytest.approx(1.3)]


def test_the_machines_that_were_measured_are_named():
    results = [
        costed(),
        costed("ties", inference=make_inference(1.4, "cuda: fast, 2 threads")),
        costed("emr", inference=None),
    ]
    for count, named in ((1, "cpu: slow, 2 threads."), (3, "cpu: slow, 2 threads and cuda: fast, 2 threads.")):
        table = cost_table(results[:count])
        assert table is not None
        assert table.notes[-1].endswith(f"Measured on {named}")


def test_what_was_not_measured_or_is_not_known_is_empty():
    costs = make_costs(0, 0.0)
    costs["training_tokens"]["experts"] = None
    table = cost_table([costed(inference=None, costs=costs | {"making": {"seconds": 0.0, "peak_memory": 0}})])
    assert table is not None
    texts = dict(zip([column.head for column in table.columns], [cell.text for cell in table.rows[0]], strict=True))
    assert texts["1000 items"] == texts["ratio"] == texts["of experts"] == texts["peak memory"] == MISSING
    assert (texts["training tokens"], texts["made in"]) == ("0", "0.0")
    assert not any("take turns" in note for note in table.notes)


def test_results_without_costs_have_no_table():
    assert cost_table([make_result()]) is None


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1000, "1.0 k"), (22_713_216, "22.7 M"), (536.35e6, "536.4 M"), (7.2e10, "72.0 G")]
)  # fmt: skip
def test_counts_as_people_read_them(count, text):
    assert human_count(count) == text


def test_the_report_writes_it_beside_the_scores(tmp_path):
    write(tmp_path / "0", costed())
    write(tmp_path / "1", costed("task_arithmetic", inference=make_inference(1.0)))
    found = report(tmp_path)
    assert {"costs.md", "costs.csv"} <= {path.name for path in found.tables}
    with (tmp_path / "costs.csv").open(newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["twin (svd rank 16)", "task_arithmetic"]
    assert (
        "| 29.5 M | 90.9 MB | 46.5 k | 384.1 k | 21.0 | 1.1 GB | 2.50 | 1.25 |" in (tmp_path / "costs.md").read_text()
    )


def test_a_narrow_terminal_names_the_method_of_every_number():
    table = cost_table([costed(), costed("ties")])
    assert table is not None
    out = io.StringIO()
    print_table(table, Console(file=out, width=80))
    lines = [line for line in out.getvalue().splitlines() if line.split()[:2] == ["ties", "routed"]]
    assert len(lines) > 1
    shown = " ".join(lines).split()
    assert set(shown) == {word for cell in table.rows[1] for word in cell.text.split()}
