"""Tables of ``evaluation=task_unknown``: wrong routes, calibration, label noise, a new domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twin_merging.reporting.methods import Estimate, Method, estimate, join_seeds
from twin_merging.reporting.tables import MISSING, Cell, Column, Scalar, Table, raw_scale, warning_of

Record = dict[str, Any]
METHOD = Column("method", "", ("method",), "key")
CONFUSION_NOTE = "Columns: the top task. Share of the true task's test rows, and how many they are; means over seeds."
ROUTE_NOTES = (
    "Raw scores × 100 where the metric is a share or a correlation, and points of them. Own head: that of the true task, under the "
    "weights that the router gave; routed head: that of its top task, as when the task is unknown.",
    "Lost by heads: own head − routed head. Lost by weights: what more the row's own expert would score on the rows sent wrong, in "
    "place of the model under their weights; – where routes decide on no weights.",
    "Still right: rows sent to a wrong task, of those with classes, whose answer is right: by the head they were sent to (where it "
    "names the class that the true task calls the same), and by the own head under the weights that they got.",
)
CALIBRATION_NOTE = (
    "ECE: Σ (share of rows) · |accuracy − mean confidence| over 15 bins of equal width (Guo et al., 2017), × 100. Answers: rows "
    "with classes by the head of the top task; confidence is the head's largest probability, alone or times the router's."
)
NOISE_NOTE = "The router is trained anew with this share of its rows' task labels wrong; test rows have right ones."
DOMAIN_NOTES = (
    "One task at a time is left out of the router's training; its test rows are then of a domain that the router never saw. What it reads "
    "is still the shared encoder's, which that task's expert went into.",
    "AUROC of 1 − the router's largest probability as a detector of these rows among the other tasks': 50 is chance (Hendrycks "
    "and Gimpel, 2017).",
)


def methods_of(results: Sequence[Record]) -> list[Method]:
    """The methods that were evaluated so, one of those that differ in nothing but the heads of the table of scores."""
    found: dict[str, Method] = {}
    for method in join_seeds([result for result in results if result.get("task_unknown")]):
        found.setdefault(method.label, method)
    return list(found.values())


def unknown_tables(results: Sequence[Record]) -> dict[str, Table]:
    """By the name of its CSV file; none if no result has this evaluation."""
    methods = methods_of(results)
    if not methods:
        return {}
    warning = warning_of(results)
    makers = {
        "task_unknown_confusion": _confusion, "task_unknown_routes": _routes, "task_unknown_calibration": _calibration, "task_unknown_noise": _noise,
        "task_unknown_new_domain": _new_domain,
    }  # fmt: skip
    tables = {name: make(methods, warning) for name, make in makers.items()}
    return {name: table for name, table in tables.items() if table.rows}


def write_unknown_tables(tables: dict[str, Table], folder: Path) -> list[Path]:
    """Write all into task_unknown.md and each into a CSV file of its own; return their paths."""
    from twin_merging.reporting.formats import to_csv, to_markdown

    if not tables:
        return []
    paths = [folder / "task_unknown.md", *(folder / f"{name}.csv" for name in tables)]
    texts = ["\n".join(map(to_markdown, tables.values())), *map(to_csv, tables.values())]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8", newline="")
    return paths


def over_seeds(method: Method, find: Callable[[Record], float | None]) -> Estimate | None:
    """A number of ``task_unknown`` over a method's seeds; None where one has none."""
    return estimate([find(result["task_unknown"]) for result in method.results])


def _confusion(methods: Sequence[Method], warning: str | None) -> Table:
    names = list(dict.fromkeys(name for method in methods for name in _names(method)))
    columns = (
        METHOD, Column("true task", "", ("true task",), "key"),
        *(Column(name, "% (rows)", (f"{name} share", f"{name} rows"), "task") for name in names),
    )  # fmt: skip
    rows = []
    for method in methods:
        for row, task in enumerate(_names(method)):
            cells = [
                _sent(method, row, _names(method).index(name)) if name in _names(method) else _sent(method, row, None)
                for name in names
            ]
            rows.append((_text(method.label), _text(task), *cells))
    notes = (CONFUSION_NOTE,)
    return Table("Task unknown: where the router sends the rows of each task", columns, tuple(rows), notes, warning)


def _names(method: Method) -> list[str]:
    return method.results[0]["task_unknown"]["stream"]["task_names"]


def _sent(method: Method, true: int, top: int | None) -> Cell:
    if top is None:
        return Cell(MISSING, (None, None))
    share = over_seeds(method, lambda record: record["router"]["shares"][true][top])
    count = over_seeds(method, lambda record: record["router"]["counts"][true][top])
    assert share is not None
    assert count is not None
    return Cell(f"{100 * share.mean:.1f} ({count.mean:.{0 if count.mean % 1 == 0 else 1}f})", (share.mean, count.mean))


def _routes(methods: Sequence[Method], warning: str | None) -> Table:
    columns = (
        METHOD, Column("task", "", ("task",), "key"), _number("test rows", "rows"), _number("routed right", "routed right", "%"),
        _number("expert", "expert"), _number("own head", "own head"), _number("routed head", "routed head"),
        _number("lost by heads", "lost by heads", "points"), _number("lost by weights", "lost by weights", "points"),
        _number("wrong routes", "wrong routes", "rows"), _number("still right, routed head", "still right by routed head", "rows"),
        _number("still right, own head", "still right by own head", "rows"),
    )  # fmt: skip
    rows = []
    for method in methods:
        for task in _names(method):
            rows.append((_text(method.label), _text(task), *_route_cells(method, task)))
    return Table("Task unknown: what the wrong routes cost", columns, tuple(rows), ROUTE_NOTES, warning)


def _route_cells(method: Method, task: str) -> list[Cell]:
    scale = raw_scale(method.results[0]["tasks"][task]["metric"])

    def of(*keys: str, scale: float = scale, decimals: int = 1) -> Cell:
        return _cell(over_seeds(method, lambda record: _at(record["cost"]["tasks"][task], keys)), scale, decimals)

    points = 2 if scale == 100 else 4
    return [
        of("rows", scale=1, decimals=0),
        _cell(over_seeds(method, lambda record: 1 - record["cost"]["tasks"][task]["wrong"] / record["cost"]["tasks"][task]["rows"]), 100),
        *(of("score", who, decimals=1 if scale == 100 else 3) for who in ("expert", "oracle", "routed")),
        of("lost_by_heads", decimals=points), of("lost_by_weights", decimals=points), of("wrong", scale=1, decimals=0),
        *(of("wrong_routes", "correct", who, scale=1, decimals=0) for who in ("routed", "oracle")),
    ]  # fmt: skip


def _calibration(methods: Sequence[Method], warning: str | None) -> Table:
    parts = {
        "routes, by the router": ("router", "calibration"), "answers, by the head": ("answers", "head"),
        "answers, by head × router": ("answers", "head_and_router"),
    }  # fmt: skip
    columns = (
        METHOD, Column("confidence", "", ("confidence of",), "key"), _number("rows", "rows"), _number("right", "right", "%"),
        _number("mean confidence", "mean confidence", "%"), _number("ECE", "ECE", "× 100"),
    )  # fmt: skip
    rows = []
    for method in methods:
        for name, place in parts.items():
            values = [
                over_seeds(method, lambda record, place=place, key=key: _at(record, (*place, key)))  # type: ignore[misc]
                for key in ("rows", "accuracy", "confidence", "ece")
            ]
            cells = (_cell(values[0], 1, 0), *(_cell(value, 100, 1) for value in values[1:3]), _cell(values[3], 100, 2))
            rows.append((_text(method.label), _text(name), *cells))
    return Table("Task unknown: calibration", columns, tuple(rows), (CALIBRATION_NOTE,), warning)


def _noise(methods: Sequence[Method], warning: str | None) -> Table:
    names = list(dict.fromkeys(task for method in methods for task in method.results[0]["tasks"]))
    columns = (
        METHOD, Column("wrong labels", "%", ("share of wrong labels",), "key"), _number("routed right", "routed right", "%"),
        _number("mean confidence", "mean confidence", "%"), _number("ECE", "ECE", "× 100"),
        *(Column(name, "routed right, %", (name, f"{name} ±"), "task") for name in names),
    )  # fmt: skip
    rows = []
    for method in methods:
        for index, entry in enumerate(method.results[0]["task_unknown"]["noise"]):

            def of(*keys: str, index: int = index, method: Method = method, decimals: int = 1) -> Cell:
                return _cell(over_seeds(method, lambda record: _at(record["noise"][index], keys)), 100, decimals)

            share = Cell(f"{100 * entry['share']:g}", (entry["share"],))
            by_task = [of("by_task", name) for name in names]
            rows.append((_text(method.label), share, of("accuracy"), of("confidence"), of("ece", decimals=2), *by_task))
    return Table("Task unknown: a router trained with wrong labels", columns, tuple(rows), (NOISE_NOTE,), warning)


def _new_domain(methods: Sequence[Method], warning: str | None) -> Table:
    columns = (
        METHOD, Column("left out", "", ("left out",), "key"), Column("goes to", "rows", ("goes to",), "task"),
        _number("largest probability, new rows", "median of new rows", "median, %"),
        _number("largest probability, known rows", "median of known rows", "median, %"), _number("AUROC", "AUROC", "× 100"),
        _number("known rows routed right", "known rows routed right", "%"),
    )  # fmt: skip
    rows = []
    for method in methods:
        for name, first in (method.results[0]["task_unknown"]["new_domain"] or {}).items():

            def of(find: Callable[[Record], float | None], name: str = name, method: Method = method) -> Cell:
                return _cell(over_seeds(method, lambda record: find(record["new_domain"][name])), 100)

            shares = {task: count / first["rows"] for task, count in first["goes_to"].items() if count}
            most = sorted(shares.items(), key=lambda item: -item[1])
            goes_to = ", ".join(f"{task} {100 * share:.0f}%" for task, share in most[:3])
            medians = [of(lambda entry, kind=kind: entry[kind]["quantiles"][2]) for kind in ("new", "known")]  # type: ignore[misc]
            auroc, accuracy = of(lambda entry: entry["auroc"]), of(lambda entry: entry["accuracy"])
            rows.append((_text(method.label), _text(name), _text(goes_to), *medians, auroc, accuracy))
    notes: tuple[str, ...] = DOMAIN_NOTES
    if any(len(method.results) > 1 for method in methods):
        notes = (*notes, "Where rows go is that of each method's first seed.")
    return Table("Task unknown: rows of a new domain", columns, tuple(rows), notes, warning)


def _number(head: str, field: str, unit: str = "") -> Column:
    return Column(head, unit, (field, f"{field} ±"), "summary")


def _text(text: str) -> Cell:
    return Cell(text, (text,))


def _cell(value: Estimate | None, scale: float, decimals: int = 1) -> Cell:
    if value is None:
        return Cell(MISSING, (None, None))
    values: tuple[Scalar, Scalar] = (value.mean, value.half_width)
    return Cell(value.text(scale, decimals), values)


def _at(record: Any, keys: Sequence[str]) -> float | None:
    """What is under these keys, one inside the other; None where there is none."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record
