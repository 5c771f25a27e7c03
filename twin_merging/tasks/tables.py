"""Rows of local files: parquet, JSON lines, CSV, or a folder that ``datasets`` saved."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

from twin_merging.errors import UserError, nearest

SUFFIXES = ("parquet", "jsonl", "csv")
STATE = "state.json"  # of a split that ``datasets`` saved


def find_table(folder: Path, *stems: str) -> Path | None:
    """The file ``STEM.parquet``, ``STEM.jsonl`` or ``STEM.csv`` in ``folder``, for the first stem there is; else None."""
    candidates = (folder / f"{stem}.{suffix}" for stem in stems for suffix in SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def find_tables(folder: Path, *stems: str) -> list[Path]:
    """The files of a split, for the first stem there is: one file as ``find_table`` finds it; the shards
    ``STEM-00000-of-00002.parquet`` of the hub's copies; or the files of the folder ``STEM`` that ``save_to_disk`` wrote.

    Raises:
        UserError: if a shard is missing, or the folder's list of files cannot be read.
    """
    for stem in stems:
        if (single := find_table(folder, stem)) is not None:
            return [single]
        if shards := _shards(folder, stem):
            return shards
        if (folder / stem / STATE).is_file():
            return _saved(folder / stem)
    return []


def find_parquet(folder: Path, stem: str) -> list[Path]:
    """``STEM.parquet``, or its shards as the hub names them; none if there is neither.

    Raises:
        UserError: if a shard is missing.
    """
    single = folder / f"{stem}.parquet"
    return [single] if single.is_file() else _shards(folder, stem)


def read_split(paths: list[Path], names: tuple[str, ...]) -> list[list[Any]]:
    """``read_columns`` of one file after the other."""
    parts = [read_columns(path, names) for path in paths]
    return [[value for part in parts for value in part[column]] for column in range(len(names))]


def _shards(folder: Path, stem: str) -> list[Path]:
    found: dict[str, dict[int, Path]] = {}
    for path in folder.glob(f"{stem}-*-of-*.parquet"):
        if match := re.fullmatch(rf"{re.escape(stem)}-(\d{{5}})-of-(\d{{5}})\.parquet", path.name):
            found.setdefault(match[2], {})[int(match[1])] = path
    if not found:
        return []
    count, shards = max(found.items())
    missing = [number for number in range(int(count)) if number not in shards]
    if missing:
        raise UserError(
            "a shard is missing", key=str(folder), found=f"{len(shards)} of {int(count)} of {stem}",
            expected=f"{stem}-{missing[0]:05d}-of-{count}.parquet",
        )  # fmt: skip
    return [shards[number] for number in sorted(shards)]


def _saved(folder: Path) -> list[Path]:
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        names = [entry["filename"] for entry in state["_data_files"]]
        if any(Path(name).name != name for name in names):
            raise ValueError("a file of another folder")
        return [folder / name for name in names]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot be read ({type(error).__name__})",
            key=str(folder / STATE),
            expected="a folder that save_to_disk wrote",
        ) from error


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


def _arrow(path: Path) -> dict[str, list[Any]]:
    import pyarrow

    with path.open("rb") as file:
        return pyarrow.ipc.open_stream(file).read_all().to_pydict()


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


_READERS = {"parquet": _parquet, "arrow": _arrow, "jsonl": _jsonl, "csv": _csv}
