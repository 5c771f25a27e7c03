"""An item as a table: for each number the paper's, ours with its interval over seeds, and the difference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from twin_merging.evaluation.leaks import leaks
from twin_merging.reporting.methods import Estimate, estimate
from twin_merging.reporting.tables import (
    HEADS,
    MISSING,
    RANDOM_WARNING,
    SEED_NOTE,
    Cell,
    Column,
    Scalar,
    Table,
    raw_scale,
)
from twin_merging.reproducing.cells import Plan, is_neutral
from twin_merging.reproducing.item import Column as ItemColumn
from twin_merging.reproducing.item import Item, Row

if TYPE_CHECKING:
    from twin_merging.reproducing.running import Done

NORMALIZED = "Normalized: 100 × score / the fine-tuned expert's score on the same test rows; its average is a mean of ratios (equation 4)."


@dataclass(frozen=True)
class Shown:
    """A column of an item: what its numbers are and where they come from.

    Args:
        compared: whether the paper's numbers stand beside ours.
        optional: whether it is left out where there is no number of ours.
    """

    key: str
    head: str
    unit: str
    part: str
    value: Callable[[dict[str, Any]], float | None]
    compared: bool
    decimals: int = 1
    optional: bool = False


def item_table(plan: Plan, done: Done) -> Table:
    """One row a method; a cell with no result is shown as –.

    On the suite of the paper a cell is ``ours / paper / difference`` where the paper prints the column. On any other the
    paper's numbers are left out of the cells; the averages stand in columns of their own, named after the paper's backbone,
    as what they are. A letter after a row's name is that of a leak, which the notes name.
    """
    possible = _shown(plan)
    shown = [each for each in possible if each.compared or not each.optional or _has_values(each, done)]
    columns = [Column("method", "", ("method",), "key"), Column("seeds", "", ("seeds",), "summary")]
    for each in shown:
        columns.append(Column(each.head, each.unit, tuple(f"{each.key} {name}" for name in _fields(each)), each.part))
    references = [] if plan.comparable else [each for each in possible if _is_reference(plan.item, each)]
    columns += [
        Column(
            f"paper ({plan.item.paper_model})",
            ", ".join(filter(None, [each.head, each.unit])),
            (f"{each.key} paper ({plan.item.paper_model})",),
            "summary",
        )
        for each in references
    ]
    rows, letters = [], _letters(plan)
    for row in plan.rows:
        of_row = {cell.seed: done.results.get(cell.name) for cell in plan.cells if cell.row is row}
        name = row.head_on(plan.suite)
        marks = "".join(f" [{letters[leak]}]" for leak in _leaks_of(plan, row))
        rows.append((Cell(name + marks, (name,)), *_row(plan.item, row, of_row, shown, references)))
    warning = warning_of(plan, done.results.values())
    return Table(_title(plan), tuple(columns), tuple(rows), tuple(_notes(plan, done, shown)), warning)


def _shown(plan: Plan) -> list[Shown]:
    item = plan.item
    printed = {key for row in item.rows for key in row.paper} if plan.comparable else set()
    shown = [
        Shown(
            task,
            item.task_heads.get(task, task),
            item.each_task,
            "task",
            _of_task(task, item.each_task),
            task in printed,
        )
        for task in plan.tasks
        if item.each_task
    ]
    for column in item.columns:
        own = (column.key in printed, column.decimals, column.on_gpu is not None)
        shown.append(Shown(column.key, column.head, column.unit, "summary", _of_job(column), *own))
    return shown


def _of_task(task: str, key: str) -> Callable[[dict[str, Any]], float | None]:
    def value(result: dict[str, Any]) -> float | None:
        entry = result["tasks"].get(task)
        return None if entry is None else in_percent(entry, key)

    return value


def _of_job(column: ItemColumn) -> Callable[[dict[str, Any]], float | None]:
    def value(result: dict[str, Any]) -> float | None:
        if column.on_gpu is not None and column.on_gpu != result["provenance"]["device"].startswith("cuda"):
            return None
        if column.value == "raw":
            return fmean(in_percent(result["tasks"][name], "raw") or 0.0 for name in column.tasks or result["tasks"])
        found: Any = result
        for key in column.value.split("."):
            found = found[key]
        measured = found is not None and (found > 0 or column.on_gpu is None)
        return found * column.scale if measured else None

    return value


def _has_values(shown: Shown, done: Done) -> bool:
    return any(shown.value(result) is not None for result in done.results.values())


def in_percent(entry: dict[str, Any], key: str) -> float | None:
    """A task's ``raw`` or ``normalized`` score as papers print it."""
    value = entry[key]
    return value * raw_scale(entry["metric"]) if key == "raw" and value is not None else value


def _fields(shown: Shown) -> tuple[str, ...]:
    return ("ours", "ours ±", "paper", "difference") if shown.compared else ("ours", "ours ±")


def _row(
    item: Item, row: Row, of_row: dict[int, dict[str, Any] | None], shown: list[Shown], references: list[Shown]
) -> tuple[Cell, ...]:
    """A row's cells after its name."""
    results = [result for result in of_row.values() if result is not None]
    seeds = " ".join(str(seed) for seed, result in of_row.items() if result is not None)
    count = f"{len(results)}" if len(results) == len(of_row) else f"{len(results)} of {len(of_row)}"
    cells = [Cell(count, (seeds,))]
    for each in shown:
        ours = estimate([each.value(result) for result in results])
        cells.append(_cell(each, ours, row.paper.get(each.key), _mark(item, row, each.key)))
    for each in references:
        paper = row.paper.get(each.key)
        cells.append(Cell(MISSING if paper is None else _printed(paper) + _mark(item, row, each.key), (paper,)))
    return tuple(cells)


def _cell(shown: Shown, ours: Estimate | None, paper: float | str | None, mark: str) -> Cell:
    text = ours.text(decimals=shown.decimals) if ours else MISSING
    values: tuple[Scalar, ...] = (ours.mean, ours.half_width) if ours else (None, None)
    if not shown.compared:
        return Cell(text, values)
    difference = ours.mean - float(paper) if ours and paper is not None else None
    parts = [
        text,
        MISSING if paper is None else _printed(paper) + mark,
        MISSING if difference is None else f"{difference:+.{shown.decimals}f}",
    ]
    return Cell(" / ".join(parts), (*values, paper, difference))


def _printed(paper: float | str) -> str:
    return paper if isinstance(paper, str) else f"{paper:.2f}"


def _mark(item: Item, row: Row, column: str) -> str:
    """The erratum's number as a superior, or nothing."""
    for number, erratum in enumerate(item.errata, 1):
        if (erratum.row, erratum.column) == (row.head, column):
            return f" [{number}]"
    return ""


def _leaks_of(plan: Plan, row: Row) -> list[str]:
    return list(dict.fromkeys(leak for cell in plan.cells if cell.row is row for leak in leaks(cell.run)))


def _letters(plan: Plan) -> dict[str, str]:
    """The letter that stands for each leak of the plan's rows."""
    found = dict.fromkeys(leak for row in plan.rows for leak in _leaks_of(plan, row))
    return {leak: chr(ord("a") + place) for place, leak in enumerate(found)}


def _is_reference(item: Item, shown: Shown) -> bool:
    return shown.part == "summary" and any(shown.key in row.paper for row in item.rows)


def name_of(item: Item) -> str:
    """``Table 8``, ``Figure 2b``."""
    kind, number, *_ = item.name.split("_")
    return f"{kind.capitalize()} {number}"


def _title(plan: Plan) -> str:
    name = name_of(plan.item)
    if plan.comparable:
        return f"{name}: {plan.item.title}. Suite {plan.suite}, {plan.backbone}"
    return f"{name}, built on the suite {plan.suite} ({plan.backbone}){_changed(plan)}: {plan.item.title}"


def _changed(plan: Plan) -> str:
    """The overrides that make the suite another one."""
    changes = [text for text in plan.given if not is_neutral(text)]
    return _short(f", changed by {' '.join(changes)}") if changes else ""


def _short(text: str, most: int = 160) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def warning_of(plan: Plan, results: Iterable[dict[str, Any]]) -> str | None:
    """What has to stand with every table and picture of random weights, and of another suite than the paper's."""
    said = [RANDOM_WARNING] if any(result.get("random_weights") for result in results) else []
    if not plan.comparable:
        said.append(
            f"suite {plan.suite} with {plan.backbone}{_changed(plan)}: not comparable with the paper's numbers, which are {plan.item.paper_model}'s"
        )
    return "; ".join(said) or None


def _notes(plan: Plan, done: Done, shown: list[Shown]) -> list[str]:
    item = plan.item
    alone = "" if all(each.compared for each in shown) else "; ours alone where the paper prints none"
    notes = [
        f"Cells: ours / paper / difference{alone}."
        if plan.comparable
        else "Cells: ours; the paper's numbers are left out of them."
    ]
    if plan.comparable and not any(row.paper for row in item.rows):
        notes = ["The paper draws this and prints no numbers."]
    notes.append(NORMALIZED)
    heads = [HEADS[name] for name in dict.fromkeys(cell.run.heads for cell in plan.cells) if name in HEADS]
    if heads:
        notes.append(f"Heads: {'; '.join(heads)}.")
    training = {cell.run.training_seed for cell in plan.cells}
    fixed = plan.cells[0].run.experts.seed is not None
    if plan.cells[0].run.experts.source is not None:
        notes.append("Experts are published ones; seeds repeat merging, routing and evaluation.")
    elif fixed:
        notes.append(
            f"Experts are fine-tuned once, with seed {min(training)}; seeds repeat what comes after. Rows that no seed changes have one."
        )
    if any(len([c for c in plan.cells if c.row is row]) > 1 for row in plan.rows):
        notes.append(SEED_NOTE)
    notes += [f"[{letter}] {leak[0].upper()}{leak[1:]}." for leak, letter in _letters(plan).items()]
    notes += [_erratum(number, erratum) for number, erratum in enumerate(item.errata, 1)]
    notes += item.notes
    missing = [cell.name for cell in plan.cells if cell.name not in done.results and cell.name not in done.failures]
    if missing:
        why = f"cannot be looked up: {done.obstacle}" if done.obstacle else f"are not computed yet: {plan.command}"
        notes.append(f"{MISSING}: {len(missing)} of {len(plan.cells)} cells {why}")
    notes += [f"Failed: {name}: {message.splitlines()[0]}" for name, message in done.failures.items()]
    return notes


def _erratum(number: int, erratum: Any) -> str:
    correct = f", should be {_printed(erratum.correct)}" if erratum.correct is not None else ""
    return f"[{number}] The paper prints {_printed(erratum.printed)} for {erratum.row}{correct}: {erratum.note}."
