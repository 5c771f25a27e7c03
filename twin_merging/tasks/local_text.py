"""Any text classification or regression from a folder of the user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twin_merging import config
from twin_merging.checksums import sha256_of
from twin_merging.errors import UserError, unknown
from twin_merging.mirror.piece import Piece, local_rows
from twin_merging.tasks.base import SPLITS, RawTask, Split
from twin_merging.tasks.tables import find_table, read_columns

LABELS = "labels.json"
FORM = '{"names": ["no", "yes"]} or {"range": [0, 5]}, and if need be "columns": ["text"] or two, and "metric"'


class LocalText:
    """``data``/text/NAME/{train,validation,test}.{parquet,jsonl,csv} with a ``labels.json`` beside them.

    ``labels.json`` says ``{"names": [...]}`` for classes or ``{"range": [low, high]}`` for regression, and may say
    ``"columns"`` (default ``["text"]``; two for a pair) and ``"metric"`` (default ``accuracy`` or ``pearson``). The column
    ``label`` has class indices or class names, or numbers. Validation and test are cut from train where they are missing.

    Args:
        options: unused: a source reads whole splits.
        paths: ``data``, or else ``mirror``, must be set.

    Raises:
        UserError: if both are null.
    """

    def __init__(self, options: config.Tasks, paths: config.Paths):
        local = paths.data or paths.mirror
        if not local:
            raise UserError(
                "tasks=local_text needs a folder", key="paths.data", expected="a folder with text/NAME/ in it"
            )
        self.folder = Path(local).expanduser() / "text"

    def known(self) -> tuple[str, ...]:
        """Names of the folders that have a ``labels.json``."""
        return tuple(sorted(path.parent.name for path in self.folder.glob(f"*/{LABELS}")))

    def assets(self, name: str) -> tuple[str, ...]:
        """No registry package is needed."""
        return ()

    def identity(self, name: str) -> dict[str, Any]:
        """What determines the raw rows: the SHA-256 of each file."""
        paths = [self._find(name) / LABELS, *self._files(name).values()]
        return {
            "source": "local_text",
            "task": name,
            "reader": 1,
            "files": {path.name: sha256_of(path) for path in paths},
        }

    def rows_to_mirror(self, name: str) -> Piece:
        """The task's files."""
        return local_rows(f"text/{name}", self._find(name), [self._find(name) / LABELS, *self._files(name).values()])

    def load(self, name: str) -> RawTask:
        """The task's rows.

        Raises:
            UserError: for an unknown task, or a file that is missing, unreadable or not of the form above.
        """
        about = _read_labels(self._find(name) / LABELS)
        names = tuple(about.get("names", ()))
        splits = {}
        for split, path in self._files(name).items():
            *texts, labels = read_columns(path, (*about["columns"], "label"))
            splits[split] = Split(list(zip(*texts, strict=True)), [_label(label, names) for label in labels])
        return RawTask(
            name=name,
            class_names=names,
            label_range=None if names else (float(about["range"][0]), float(about["range"][1])),
            metric=about.get("metric", "accuracy" if names else "pearson"),
            columns=len(about["columns"]),
            splits=splits,
            provenance={
                "source": f"local files, text/{name}",
                "licence": "the user's",
                "splits": {split: path.name for split, path in self._files(name).items()},
            },
        )

    def _find(self, name: str) -> Path:
        if name not in self.known():
            raise unknown("tasks.names", name, self.known(), f"task among the folders with a {LABELS} in {self.folder}")
        return self.folder / name

    def _files(self, name: str) -> dict[str, Path]:
        found = {split: find_table(self._find(name), split) for split in SPLITS}
        return {split: path for split, path in found.items() if path is not None}


def _read_labels(path: Path) -> dict[str, Any]:
    """The checked content of a ``labels.json``, with its ``columns`` filled in."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"not valid JSON ({error})", key=str(path), expected=FORM) from error
    if not isinstance(about, dict) or ("names" in about) == ("range" in about):
        raise UserError('exactly one of "names" and "range" must be there', key=str(path), found=about, expected=FORM)
    if unknown_keys := about.keys() - {"names", "range", "columns", "metric"}:
        raise UserError("unknown key", key=str(path), found=", ".join(sorted(unknown_keys)), expected=FORM)
    about = {"columns": ["text"], **about}
    for key, check in _CHECKS.items():
        if key in about and not check(about[key]):
            raise UserError(f'"{key}" is not of the right form', key=str(path), found=about[key], expected=FORM)
    return about


def _distinct_strings(value: Any, least: int, most: int | None = None) -> bool:
    is_strings = isinstance(value, list) and all(isinstance(item, str) and item for item in value)
    return is_strings and len(set(value)) == len(value) >= least and (most is None or len(value) <= most)


def _is_range(value: Any) -> bool:
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and all(isinstance(bound, (int, float)) for bound in value) and value[0] < value[1]


_CHECKS = {
    "names": lambda value: _distinct_strings(value, least=2),
    "range": _is_range,
    "columns": lambda value: _distinct_strings(value, least=1, most=2),
    "metric": lambda value: isinstance(value, str),
}


def _label(label: Any, names: tuple[str, ...]) -> Any:
    """A class name as its index, text as the number it says; what is neither stays for the row check to refuse."""
    if not isinstance(label, str):
        return label
    if label in names:
        return names.index(label)
    try:
        return int(label) if names else float(label)
    except ValueError:
        return label
