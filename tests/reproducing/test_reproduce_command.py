"""``reproduce.py`` on a tiny model: its table, its title, what is missing, and what a failure does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
import tiny

from twin_merging.reproducing import cells, cli, item, running, tables


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that turn the quickstart into a suite that takes seconds."""
    bert, data = tiny.save_tiny_bert(tmp_path_factory.mktemp("bert")), tiny.save_tasks(tmp_path_factory.mktemp("data"))
    cache = tmp_path_factory.mktemp("cache")
    return [
        "--suite", "quickstart", f"backbone.pretrained={bert}", "backbone.max_length=20", "tasks=local_text", f"paths.data={data}",
        f"tasks.names=[{','.join(tiny.TASKS)}]", "tasks.rows={train:96,validation:48,test:48}", "finetune.epochs=2", "finetune.lr=5e-3",
        "router=mlp", "router.epochs=2", "precision=fp32", "device=cpu", f"paths.cache={cache}",
    ]  # fmt: skip


def reproduce(*arguments: str) -> int:
    return cli.main(list(arguments))


def folder_of(tmp_path: Path, name: str) -> Path:
    return tmp_path / "reproduce" / name / "quickstart"


def test_table_on_another_suite(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    arguments = ["table_6", *given, f"paths.outputs={tmp_path}", "--seeds", "0,1"]
    assert reproduce(*arguments, "--only-report") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "8 of 8 cells are not computed yet: python reproduce.py table_6 --suite quickstart backbone." in shown
    folder = folder_of(tmp_path, "table_6")
    assert "| – |" in (folder / "table.md").read_text()
    assert not (folder / "cells").exists()

    assert reproduce(*arguments) == 0
    markdown = (folder / "table.md").read_text()
    assert "built on the suite quickstart" in markdown
    assert "not comparable with the paper's numbers" in markdown
    assert "paper (RoBERTa-base)" in markdown
    assert " / " not in markdown.split("\n| ")[3]
    assert r"\toprule" in (folder / "table.tex").read_text()
    assert (folder / "table.csv").read_text()
    records = json.loads((folder / "cells.json").read_text())
    assert len(records) == 8
    assert {record["status"] for record in records} == {"done"}
    assert {record["expert_seed"] for record in records} == {0}
    assert {record["seed"] for record in records} == {0, 1}
    assert "computed in" in capsys.readouterr().out

    assert reproduce(*arguments) == 0
    assert "computed in" not in capsys.readouterr().out
    assert (folder / "table.md").read_text() == markdown


def test_a_killed_run_goes_on(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    arguments = ["table_11", *given, f"paths.outputs={tmp_path}", f"paths.cache={tmp_path}/cache", "--seeds", "0"]
    execute, ran = running.execute, []

    def killed_at_the_third(*args):
        ran.append(args)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return execute(*args)

    monkeypatch.setattr(running, "execute", killed_at_the_third)
    assert reproduce(*arguments) == 130
    monkeypatch.setattr(running, "execute", execute)
    capsys.readouterr()
    assert reproduce(*arguments) == 0
    assert "6 cells, 2 done" in capsys.readouterr().out


def test_a_failed_cell_stops_no_other(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    execute = running.execute

    def fails_for_ties(run, *args):
        if run.merge_method.name == "ties":
            raise RuntimeError("no luck")
        return execute(run, *args)

    monkeypatch.setattr(running, "execute", fails_for_ties)
    assert (
        reproduce("table_11", *given, f"paths.outputs={tmp_path}", f"paths.cache={tmp_path}/cache", "--seeds", "0") == 1
    )
    out = capsys.readouterr().out
    assert "failed: Ties-Merging, seed 0: RuntimeError: no luck" in out
    records = json.loads((folder_of(tmp_path, "table_11") / "cells.json").read_text())
    assert [record["row"] for record in records if record["status"] == "missing"] == ["Ties-Merging"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tabel_6"], "nearest:  table_6"),
        ([], "no item is named"),
        (["table_6", "--suite", "quikstart"], "nearest:  quickstart"),
        (["table_6", "--suite", "quickstart", "--seeds", "a"], "not seeds"),
        (["table_6", "--suite", "quickstart", "router.layr=1"], "layer"),
        (["table_5", "--suite", "quickstart"], "needs tasks"),
    ],
)
def test_bad_input_is_exit_code_2(arguments: list[str], says: str, capsys: pytest.CaptureFixture):
    assert reproduce(*arguments) == 2
    assert says in capsys.readouterr().err


def test_a_report_of_what_cannot_be_had_still_shows_the_paper(given: list[str], tmp_path: Path, capsys):
    without = [text for text in given if not text.startswith("backbone.pretrained=")]
    arguments = ["table_6", *without, f"paths.outputs={tmp_path}", f"backbone.pretrained={tmp_path / 'no_model'}"]
    assert reproduce(*arguments, "--only-report") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "41.69" in shown
    assert "cells cannot be looked up: backbone.pretrained:" in shown
    assert reproduce(*arguments) == 2


def test_on_the_papers_suite_cells_have_paper_and_difference(given: list[str], tmp_path: Path):
    """The quickstart declared the paper's suite: what such a table looks like, whatever computes it."""
    from dataclasses import replace

    own = replace(item.load_item("table_6"), suite="quickstart")
    overrides = [text for text in given if not text.startswith(("--", "quickstart"))]
    plan = replace(cells.plan_item(own, None, overrides, [0]), comparable=True)
    results = {
        cell.name: {"average_normalized": 50.0, "tasks": {}, "bytes_stored": 1}
        for cell in plan.cells
        if cell.row.head == "Pretrain"
    }
    table = tables.item_table(plan, running.Done(results))
    assert [row[2].text for row in table.rows][:2] == ["50.0 / 41.69 [1] / +8.3", "– / 67.80 / –"]
    assert table.warning is None
    assert table.title.startswith("Table 6: ")
    assert any("should be 42.70" in note for note in table.notes)
    assert not cells.plan_item(own, None, [*overrides, "tasks.limit=8"], [0]).comparable
