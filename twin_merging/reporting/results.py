"""results.json: what one job found, written once, whole or not at all."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twin_merging.errors import UserError

SCHEMA_VERSION = 1
RESULTS, FAILURE = "results.json", "failure.json"
ATTEMPTS = "attempts"  # a folder in a sweep's, with what jobs left that were run again
REQUIRED = (
    "schema_version", "exp", "suite", "backbone", "merge_method", "label", "heads", "seed", "status",
    "average_normalized", "average_raw", "reference", "bytes_stored", "seconds", "peak_memory", "offline_suite",
    "tasks", "routing", "choices", "stages", "provenance",
)  # fmt: skip
REQUIRED_OF_TASK = ("metric", "raw", "reference", "normalized", "rows", "confidence_interval")


def write(folder: Path, results: dict[str, Any]) -> Path:
    """Write ``folder/results.json`` in one step: a killed process leaves the whole file or none.

    Returns:
        The path of the file.

    Raises:
        UserError: if the folder has a results.json already.
        ValueError: if a key of the schema is missing or a number is NaN or infinite; the message says which.
    """
    path = Path(folder) / RESULTS
    if path.exists():
        raise UserError(
            "this folder has results already and they are never overwritten",
            key=str(path),
            hint="choose another output folder, or move this one away",
        )
    if fault := _fault(results):
        raise ValueError(f"results for {path}: {fault}")
    if place := next(_not_finite(results, ""), None):
        raise ValueError(f"results for {path}: {place} is not a finite number")
    return write_json(path, results)


def write_failure(folder: Path, *, label: str, kind: str, message: str, log: str) -> Path:
    """Write ``folder/failure.json`` for a job that gave no results.

    Args:
        kind: ``user`` for bad input, ``crash`` for anything else.
        log: path of the job's log, with the traceback.
    """
    return write_json(Path(folder) / FAILURE, {"label": label, "kind": kind, "message": message, "log": log})


def write_json(path: Path, content: Any) -> Path:
    """Write a JSON file in one step: a killed process leaves the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def read(folder: Path) -> dict[str, Any]:
    """The results of the job whose folder this is.

    Raises:
        UserError: if there is no results.json, or it is damaged or of another schema version; names the file.
    """
    path = Path(folder) / RESULTS
    results = _read_json(path)
    version = results.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(
            "results of another schema version", key=str(path), found=version, expected=f"version {SCHEMA_VERSION}"
        )
    if fault := _fault(results):
        raise UserError(f"damaged results file ({fault})", key=str(path), hint="run this job again in a new folder")
    return results


def collect(folder: Path) -> list[dict[str, Any]]:
    """All results of a job's folder or of a multirun folder, in the order of the jobs (2 before 10)."""
    return [read(job) for job in job_folders(folder)]


def job_folders(folder: Path) -> list[Path]:
    """The folders with results that ``collect`` reads, in its order."""
    return [path.parent for path in _found(folder, RESULTS)]


def collect_failures(folder: Path) -> list[dict[str, Any]]:
    """The failure.json of every job that failed below ``folder``: label, kind, message and log; in job order."""
    return [_read_json(path) for path in _found(folder, FAILURE) if not path.with_name(RESULTS).exists()]


def _found(folder: Path, name: str) -> list[Path]:
    """The files of this name, in the order of jobs; those of earlier attempts at a job are none of its results."""
    folder = Path(folder)
    found = [path for path in folder.rglob(name) if ATTEMPTS not in path.relative_to(folder).parts]
    return sorted(found, key=lambda path: _natural(str(path.parent.relative_to(folder))))


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which numbers inside names count as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("there is no such file", key=str(path), hint="a job writes it when it is done") from None
    except (ValueError, OSError) as error:
        raise UserError(
            f"damaged file ({error})", key=str(path), hint="move its folder away or run its job again"
        ) from None
    if not isinstance(content, dict):
        raise UserError("damaged file", key=str(path), found=type(content).__name__, expected="a JSON object")
    return content


def _fault(results: dict[str, Any]) -> str | None:
    """What of the schema is missing, in words, or None."""
    missing = [key for key in REQUIRED if key not in results]
    if missing:
        return "without " + ", ".join(missing)
    if not isinstance(results["tasks"], dict) or not results["tasks"]:
        return "tasks is not a mapping with at least one task"
    for name, task in results["tasks"].items():
        missing = [key for key in REQUIRED_OF_TASK if not isinstance(task, dict) or key not in task]
        if missing:
            return f"tasks.{name} without " + ", ".join(missing)
    return None


def _not_finite(value: Any, place: str) -> Iterator[str]:
    """The places of numbers that JSON cannot hold."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{place}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield place


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
