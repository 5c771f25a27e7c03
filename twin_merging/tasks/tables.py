"""Rows of a local file: parquet, JSON lines or CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from twin_merging.errors import UserError, nearest

SUFFIXES = ("parquet", "jsonl", "csv")


def find_table(folder: Path, *stems: str) -> Path | None:
    """The file ``STEM.parquet``, ``STEM.jsonl`` or ``STEM.csv`` in ``folder``, for the first stem there is; else None."""
    candidates = (folder / f"{stem}.{suffix}" for stem in stems for suffix in SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def read_columns(path: Path, names: tuple[str, ...]) -> list[list[Any]]:
    """The values of each named column, in the order of ``names``; a CSV's values are text.

    Raises:
        UserError: if the file cannot be read, or lacks a column.
    """
    try:
        rows = _READERS[path.suffix.removeprefix(".")](path)
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's and json's errors are ValueErrors
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot read this file ({reason})", key=str(path), expected=f"a valid {path.suffix} file"
        ) from error
    for name in names:
        if name not in rows:
            raise UserError(
                "the file lacks a column",
                key=str(path),
                found=", ".join(rows) or "no rows",
                expected=name,
                nearest=nearest(name, rows),
            )
    return [rows[name] for name in names]


def _parquet(path: Path) -> dict[str, list[Any]]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pydict()


def _jsonl(path: Path) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate((line for line in file if line.strip()), start=1):
            row = json.loads(line)
            if not isinstance(row, dict) or (columns and row.keys() != columns.keys()):
                raise ValueError(f"row {number} is not an object with the keys of the first row")
            for key, value in row.items():
                columns.setdefault(key, []).append(value)
    return columns


def _csv(path: Path) -> dict[str, list[Any]]:
    csv.field_size_limit(1 << 24)  # a document can be longer than the module's default of 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(f"row {number} has {len(row)} fields, the header {len(rows[0])}")
    return {name: list(values) for name, *values in zip(*rows, strict=True)}


_READERS = {"parquet": _parquet, "jsonl": _jsonl, "csv": _csv}
