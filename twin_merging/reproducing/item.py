"""One table or figure of the paper: ``experiments/ITEM.yaml``, read and checked."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from twin_merging.errors import UserError, nearest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
KINDS = ("table", "figure")
Number = float | str


@dataclass(frozen=True)
class Variant:
    """How a row is computed on one suite: ``cell`` in place of the row's own, which its name there ``says``."""

    says: str
    cell: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One method or one point: the overrides that compute it and what the paper prints for it.

    Args:
        head: the paper's name of it; ``{NAME}`` stands for a value of ``for``.
        cell: overrides of run.py; ``{NAME}`` as above, ``{names}`` for the suite's first ``count`` tasks.
        paper: column -> the number as printed.
        deterministic: no seed changes it once the experts are given, so that one seed is enough.
        at: where it stands in a figure: ``for``'s values, and what the file says itself.
        by_suite: how it is computed on other suites, by their names.
    """

    head: str
    cell: tuple[str, ...]
    paper: dict[str, Number] = field(default_factory=dict)
    deterministic: bool = False
    at: dict[str, Any] = field(default_factory=dict)
    by_suite: dict[str, Variant] = field(default_factory=dict)

    def cell_on(self, suite: str) -> tuple[str, ...]:
        """The overrides that compute it on a suite."""
        return self.by_suite[suite].cell if suite in self.by_suite else self.cell

    def head_on(self, suite: str) -> str:
        """Its name on a suite."""
        return f"{self.head}, {self.by_suite[suite].says}" if suite in self.by_suite else self.head


@dataclass(frozen=True)
class Column:
    """A column that is no task's: ``value`` is a key of results.json, dotted where it lies deeper, or ``raw`` averaged over ``tasks``.

    Args:
        scale: what ours is multiplied with to be in ``unit``.
        decimals: how many ours has.
        on_gpu: whether it is of results that CUDA computed or of the others, where 0 is nothing measured; None: of all.
    """

    key: str
    head: str
    value: str
    tasks: tuple[str, ...] = ()
    unit: str = ""
    scale: float = 1.0
    decimals: int = 1
    on_gpu: bool | None = None


@dataclass(frozen=True)
class Erratum:
    """A printed number that does not agree with the paper's others, and what would."""

    row: str
    column: str
    printed: Number
    note: str
    correct: Number | None = None


@dataclass(frozen=True)
class Item:
    """A table or figure of the paper.

    Args:
        suite: the experiment (``+exp``) whose results the paper's numbers can be held against.
        also_comparable: other such experiments.
        overrides: of every cell.
        each_task: the number shown for every task of the suite, ``normalized`` or ``raw``; None: no task columns.
        task_heads: the paper's name of a task, in the paper's order.
        needs: tasks without which the item means nothing.
        paper_model: whose numbers the paper prints.
        draw: the function of ``pictures.py`` that draws it.
        settings: what that function is told.
    """

    name: str
    kind: str
    title: str
    shows: str
    suite: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...] = ()
    also_comparable: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    overrides: tuple[str, ...] = ()
    each_task: str | None = None
    task_heads: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    errata: tuple[Erratum, ...] = ()
    paper_model: str = "RoBERTa-base"
    draw: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def cells(self) -> int:
        """Jobs in all, with the item's own seeds."""
        return sum(1 if row.deterministic else len(self.seeds) for row in self.rows)


def known_items(folder: Path = EXPERIMENTS) -> list[str]:
    """All items' names: tables, then figures, in the paper's order."""
    return sorted((path.stem for path in folder.glob("*.yaml")), key=_paper_order)


def load_item(name: str, folder: Path = EXPERIMENTS) -> Item:
    """Read an item.

    Raises:
        UserError: if there is none of this name, or its file is wrong; names the key.
    """
    path = folder / f"{name}.yaml"
    known = known_items(folder)
    if name not in known:
        raise UserError(
            "no such table or figure", key="ITEM", found=name, expected="one of " + ", ".join(known),
            nearest=nearest(name, known), hint="python reproduce.py --list",
        )  # fmt: skip
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), loader)
    except yaml.YAMLError as error:
        raise UserError(f"cannot be read ({error})", key=str(path)) from error
    return _item(name, content, path)


def _item(name: str, content: Any, path: Path) -> Item:
    if not isinstance(content, dict):
        raise UserError("not an item", key=str(path), found=type(content).__name__, expected="keys and values")
    rows = [row for given in _list(content, "rows", path) for row in _expanded(_row(given, f"{path}: rows"))]
    parts = {
        "rows": rows,
        "columns": [_typed(Column, given, f"{path}: columns") for given in content.get("columns") or []],
        "errata": [_typed(Erratum, given, f"{path}: errata") for given in content.get("errata") or []],
    }
    item = _typed(Item, {**content, **parts, "name": name}, str(path))
    _check(item, path)
    return item


def _row(given: Any, where: str) -> Row:
    row = _typed(Row, given, where)
    if not isinstance(row.by_suite, dict):
        raise UserError(
            "not a mapping", key=f"{where}: {row.head}: by_suite", found=row.by_suite, expected="SUITE: {says, cell}"
        )
    own = {suite: _typed(Variant, each, f"{where}: {row.head}: {suite}") for suite, each in row.by_suite.items()}
    return replace(row, by_suite=own)


def _check(item: Item, path: Path) -> None:
    if item.kind not in KINDS:
        raise UserError("not a valid choice", key=f"{path}: kind", found=item.kind, expected=" or ".join(KINDS))
    heads = [row.head for row in item.rows]
    if twice := {head for head in heads if heads.count(head) > 1}:
        raise UserError("two rows of one head", key=f"{path}: rows", found=", ".join(sorted(twice)))
    columns = {*item.task_heads, *(column.key for column in item.columns)}
    for row in item.rows:
        if unknown := set(row.paper) - columns:
            raise UserError(
                "no such column", key=f"{path}: rows: {row.head}: paper", found=sorted(unknown)[0],
                expected=", ".join(sorted(columns)),
            )  # fmt: skip
    for erratum in item.errata:
        found = next((row for row in item.rows if row.head == erratum.row), None)
        if found is None or found.paper.get(erratum.column) != erratum.printed:
            raise UserError(
                "an erratum of a number that is not in the item", key=f"{path}: errata", found=f"{erratum.row}, {erratum.column}: {erratum.printed}"
            )  # fmt: skip


def _expanded(row: Row) -> list[Row]:
    """A row with ``for`` in ``at`` is one row for each combination of its values."""
    given = dict(row.at)
    axes = given.pop("for", None)
    if not axes:
        return [row]
    made = []
    for values in product(*axes.values()):
        at = {**given, **dict(zip(axes, values, strict=True))}
        made.append(replace(row, head=_filled(row.head, at), cell=tuple(_filled(text, at) for text in row.cell), at=at))
    return made


def _filled(text: str, at: dict[str, Any]) -> str:
    for name, value in at.items():
        text = text.replace("{" + name + "}", str(value))
    return text


def _typed(kind: type, given: Any, where: str) -> Any:
    """A mapping as a frozen dataclass: no key unknown, none missing, lists as tuples."""
    known = {each.name for each in fields(kind)}
    if not isinstance(given, dict):
        raise UserError("not a mapping", key=where, found=given, expected=", ".join(sorted(known)))
    for key in given:
        if key not in known:
            raise UserError(
                "unknown key", key=f"{where}: {key}", expected=", ".join(sorted(known)), nearest=nearest(key, known)
            )
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})
    except TypeError as error:
        raise UserError(f"a key is missing ({error})", key=where) from error


def _list(content: dict, key: str, path: Path) -> list:
    if not isinstance(content.get(key), list) or not content[key]:
        raise UserError("a list is needed", key=f"{path}: {key}", found=content.get(key), expected="at least one entry")
    return content[key]


def _paper_order(name: str) -> tuple:
    kind, _, number = name.partition("_")
    digits = "".join(character for character in number if character.isdigit())
    return (KINDS.index(kind) if kind in KINDS else len(KINDS), int(digits or 0), number)
