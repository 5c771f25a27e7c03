import csv
import io
import re
import statistics

import pytest
from rich.console import Console
from synthetic import TASKS, make_result, make_results

from twin_merging.reporting.formats import print_table, to_csv, to_latex, to_markdown, wrap_name
from twin_merging.reporting.tables import (
    OFFLINE_WARNING,
    RANDOM_WARNING,
    Cell,
    Column,
    Table,
    human_bytes,
    results_table,
    write_tables,
)


def printed(table: Table, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    print_table(table, console)
    return console.file.getvalue()


def test_cells_are_raw_times_100_and_normalized():
    result = make_result(tasks={"bbc": "accuracy"})
    result["tasks"]["bbc"] |= {"raw": 0.8166, "normalized": 99.24}
    table = results_table([result])
    assert [cell.text for cell in table.rows[0]][2:4] == ["1", "81.7 / 99.2"]
    assert table.records()[0]["bbc raw"] == 0.8166


def test_a_metric_without_a_maximum_of_1_stays_in_its_own_units():
    result = make_result(tasks={"prices": "mse", "bbc": "accuracy"})
    result["tasks"]["prices"] |= {"raw": 3.14159, "normalized": None}
    table = results_table([result])
    assert table.rows[0][3].text == "3.142 / –"
    assert any("no maximum of 1" in note for note in table.notes)


def test_seeds_are_joined_with_their_confidence():
    results = [make_result(seed=seed) for seed in range(3)]
    table = results_table(results)
    (record,) = table.records()
    raw = [result["tasks"]["bbc"]["raw"] for result in results]
    assert record["bbc raw"] == pytest.approx(statistics.mean(raw))
    # 4.302653 is the 97.5 % quantile of Student's t with 2 degrees of freedom.
    assert record["bbc raw ±"] == pytest.approx(4.302653 * statistics.stdev(raw) / 3**0.5, rel=1e-6)
    assert (record["seeds"], record["number of seeds"]) == ("0 1 2", 3)
    assert any("Student t" in note for note in table.notes)
    assert not any("Student t" in note for note in results_table(results[:1]).notes)


def test_a_task_that_a_method_lacks_is_a_dash():
    table = results_table([make_result(tasks={"a": "accuracy"}), make_result("ties", tasks={"b": "accuracy"})])
    assert [row[4 - index].text for index, row in enumerate(table.rows)] == ["–", "–"]
    assert table.records()[0]["b raw"] is None


def test_notes_say_what_is_needed_to_read_the_numbers():
    choice = {"what": "scaling", "chosen": 0.4, "split": "validation", "scores": {"0.4": 91.2}}
    table = results_table([make_result("task_arithmetic", choices=[choice]), make_result(heads="routed")])
    notes = "\n".join(table.notes)
    assert "finetuned expert of each task, own head" in notes
    assert "oracle: the head of the true task" in notes
    assert "routed: the head of the router's top task" in notes
    assert "whole expert" not in notes
    routed = "\n".join(results_table([make_result("finetuned", heads="routed")]).notes)
    assert "routed: the head of the router's top task answers; of finetuned its whole expert." in routed
    assert "Chosen on the validation split: scaling = 0.4 for task_arithmetic." in notes


@pytest.mark.parametrize("render", [to_markdown, to_csv, to_latex, lambda table: printed(table, 80)])
def test_every_form_says_when_it_is_of_the_offline_suite(render):
    assert OFFLINE_WARNING in render(results_table([make_result(), make_result("ties", offline_suite=False)]))
    assert OFFLINE_WARNING not in render(results_table([make_result(offline_suite=False)]))


def test_random_weights_are_warned_of():
    assert RANDOM_WARNING in results_table([make_result(random_weights=True), make_result("ties")]).warning
    assert RANDOM_WARNING not in results_table([make_result()]).warning


@pytest.mark.parametrize("width", [60, 80, 100, 160])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_printed_table_fits_and_shows_every_number(width, seeds):
    results = [result | {"seed": seed} for seed in range(seeds) for result in make_results(10)]
    table = results_table(results)
    text = printed(table, width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text
    for row in table.rows:
        for column, cell in zip(table.columns, row, strict=True):
            if column.part == "task":
                assert all(piece in text for piece in cell.text.split(" / "))


@pytest.mark.parametrize("width", [40, 80])
def test_a_summary_that_is_too_wide_is_printed_in_parts_that_each_name_their_rows(width):
    columns = [
        Column("name", "", ("name",), "key"),
        *(Column(f"column {n}", "", (f"c{n}",), "summary") for n in range(9)),
    ]
    row = (Cell("twin of all", ("twin",)), *(Cell(f"{n}00,000", (n,)) for n in range(9)))
    lines = printed(Table("costs", tuple(columns), (row,)), width).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    shown = [line for line in lines if "00,000" in line]
    assert len(shown) > 1
    assert all(line.strip().startswith("twin of all") for line in shown)
    assert [n for line in shown for n in range(9) if f"{n}00,000" in line] == list(range(9))


def test_a_table_of_names_alone_is_printed_though_it_is_too_wide():
    assert "twin" in printed(
        Table("names", (Column("name " * 9, "", ("n",), "key"),), ((Cell("twin", ("twin",)),),)), 20
    )


def test_brackets_in_a_label_are_no_markup():
    assert "[bold]" in printed(results_table([make_result("twin [bold]")]), 160)


AWKWARD = r"a|b_c & 50% $x$ #1 {y} ~ ^ \z" + ', "quoted"'


def awkward_table() -> Table:
    columns = (Column("name", "", ("name",), "key"), Column("score_1", "%", ("score_1",), "summary"))
    return Table("a_title", columns, ((Cell(AWKWARD, (AWKWARD,)), Cell("1.0 ± 0.1", (1.0,))),))


def test_markdown_keeps_awkward_text_in_its_cell():
    row = to_markdown(awkward_table()).splitlines()[4]
    cells = re.split(r"(?<!\\)\|", row)[1:-1]
    assert len(cells) == 2
    assert re.sub(r"\\(.)", r"\1", cells[0].strip()) == AWKWARD


def test_csv_gives_back_awkward_text():
    (record,) = csv.DictReader(io.StringIO(to_csv(awkward_table())))
    assert record == {"name": AWKWARD, "score_1": "1.0"}


def test_latex_leaves_no_special_character_bare():
    lines = to_latex(awkward_table()).splitlines()
    row = next(line for line in lines if "quoted" in line)
    assert row == (
        r"a|b\_c \& 50\% \$x\$ \#1 \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}z, "
        r'"quoted" & 1.0 $\pm$ 0.1 \\'
    )
    assert [line for line in lines if "rule" in line] == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert r"\begin{tabular}{lr}" in lines


def test_files_are_written(tmp_path):
    table = results_table(make_results())
    paths = write_tables(table, tmp_path / "new")
    assert [path.name for path in paths] == ["table.md", "table.csv", "table.tex"]
    with paths[1].open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 10
    assert all(task.replace("_", r"\_") in paths[0].read_text() for task in TASKS)


@pytest.mark.parametrize(
    ("name", "wrapped"),
    [
        ("bbc", "bbc"),
        ("rotten_tomatoes", "rotten_\ntomatoes"),
        ("election-tweets-2016", "election-\ntweets-2016"),
        ("antidisestablishmentarianism", "antidisestab…"),
    ],
)
def test_names_are_wrapped_where_they_have_joints(name, wrapped):
    assert wrap_name(name) == wrapped


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (90_853_912, "90.9 MB"), (999_960, "1.0 MB"), (1.5e12, "1.5 TB"), (3e15, "3000.0 TB")],
)
def test_bytes_are_readable(count, text):
    assert human_bytes(count) == text
