import io
import json

import pytest
from rich.console import Console
from synthetic import TASKS, make_result, make_results

from twin_merging.errors import UserError
from twin_merging.reporting.report import print_report, report
from twin_merging.reporting.results import write


def shown(found) -> str:
    console = Console(width=200, file=io.StringIO(), color_system=None)
    print_report(found, console)
    return console.file.getvalue()


def add_failure(folder, **changes):
    folder.mkdir(parents=True)
    failure = {"label": "ties", "kind": "user", "message": "density: out of range\n  found: 7", "log": "7/job.log"}
    (folder / "failure.json").write_text(json.dumps(failure | changes))


def test_a_multirun_gets_tables_figures_and_its_failures(tmp_path):
    for job, result in enumerate(make_results(10)):
        write(tmp_path / str(job), result)
    add_failure(tmp_path / "10")
    found = report(tmp_path)
    assert len(found.results) == 10
    assert {path.name for path in found.tables} == {"table.md", "table.csv", "table.tex"}
    stems = {path.stem for path in found.figures}
    assert {f"task_{task}" for task in TASKS} | {"average_normalized", "routing_twin_svd_rank_16"} <= stems
    assert all(path.is_file() for path in (*found.tables, *found.figures))
    text = shown(found)
    assert "twin (svd rank 16)" in text
    assert "failed: ties: density: out of range\n" in text
    assert "log: 7/job.log" in text
    assert str(tmp_path) in text


def test_oracle_and_routed_heads_share_one_heat_map(tmp_path):
    write(tmp_path / "0", make_result(heads="oracle"))
    write(tmp_path / "1", make_result(heads="routed"))
    write(tmp_path / "2", make_result("pretrained"))
    figures = report(tmp_path).figures
    assert [path.name for path in figures if path.stem.startswith("routing")] == [
        "routing_twin_svd_rank_16.png",
        "routing_twin_svd_rank_16.svg",
    ]


def test_where_every_job_failed_the_failures_are_the_report(tmp_path):
    add_failure(tmp_path / "0", message="")
    found = report(tmp_path)
    assert found.table is None
    assert "failed: ties: no message" in shown(found)
    assert not (tmp_path / "figures").exists()


def test_an_empty_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match="no results") as error:
        report(tmp_path)
    assert error.value.key == str(tmp_path)


def test_a_report_can_be_made_again(tmp_path):
    write(tmp_path, make_result())
    assert report(tmp_path) == report(tmp_path)
