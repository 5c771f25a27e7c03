"""The eight GLUE tasks, from a local mirror or the hub.

GLUE hides its test labels, so the official validation split is the test split here, and validation is cut from train.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twin_merging import config
from twin_merging.checksums import sha256_of
from twin_merging.errors import UserError, unknown
from twin_merging.mirror.piece import Piece, hub_rows, local_rows
from twin_merging.tasks.base import TEST, TRAIN, RawTask, Split
from twin_merging.tasks.tables import STATE, find_tables, read_split

HUB = "nyu-mll/glue"
OFFICIAL = {"mnli": "validation_matched"}  # where the split is not called validation
REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"


@dataclass(frozen=True)
class Entry:
    """A GLUE task's text columns, class names (none for regression) and metric, as the benchmark defines them."""

    columns: tuple[str, ...]
    class_names: tuple[str, ...]
    metric: str = "accuracy"


class Glue:
    """GLUE: CoLA, SST-2, MRPC, STS-B, QQP, MNLI (matched), QNLI, RTE.

    Args:
        options: unused: a source reads whole splits.
        paths: rows are read from ``data``/glue/TASK if ``data`` is set, else in the same way from ``mirror``, else from the
            hub. Such a folder holds ``train`` and ``validation``, or ``validation_matched``: each a parquet file, its
            shards as the hub names them, JSON lines, or a folder that ``datasets.DatasetDict.save_to_disk`` wrote.
    """

    def __init__(self, options: config.Tasks, paths: config.Paths):
        local = paths.data or paths.mirror
        self.folder = Path(local).expanduser() / "glue" if local else None
        self.is_copy = bool(paths.data)

    def known(self) -> tuple[str, ...]:
        """Names of all tasks."""
        return tuple(TASKS)

    def assets(self, name: str) -> tuple[str, ...]:
        """No registry package is needed."""
        return ()

    def identity(self, name: str) -> dict[str, Any]:
        """What determines the raw rows: the SHA-256 of each local file, or the hub revision."""
        _find(name)
        about: dict[str, Any] = {"source": "glue", "task": name, "reader": 1}
        if self.folder is None:
            return {**about, "hub": HUB, "revision": REVISION}
        files = [path for paths in self._files(name).values() for path in paths]
        return {**about, "files": {path.relative_to(self.folder / name).as_posix(): sha256_of(path) for path in files}}

    def rows_to_mirror(self, name: str) -> Piece:
        """What a mirror has to hold of the task: its local files, or the hub's."""
        _find(name)
        place = f"glue/{name}"
        if self.folder is None or not self.is_copy:
            return hub_rows(place, HUB, REVISION, name, ("train", OFFICIAL.get(name, "validation")))
        files = [path for paths in self._files(name).values() for path in paths]
        states = {path.parent / STATE for path in files if path.suffix == ".arrow"}
        return local_rows(place, self.folder / name, [*files, *sorted(states)])

    def load(self, name: str) -> RawTask:
        """The task's rows; a row with an empty text, of which the official data have some, is left out and counted.

        Raises:
            UserError: for an unknown task, a missing or unreadable file, or a hub that cannot be reached.
        """
        entry = _find(name)
        columns = (*entry.columns, "label")
        if self.folder is None:
            tables, source = _hub_columns(name, columns), f"{HUB} at {REVISION}"
        else:
            tables = {split: read_split(paths, columns) for split, paths in self._files(name).items()}
            source = f"local GLUE files, task {name}"
        splits, empty = {}, {}
        for split, (*texts, labels) in tables.items():
            rows = list(zip(zip(*texts, strict=True), labels, strict=True))
            full = [(text, label) for text, label in rows if all(part and part.strip() for part in text)]
            splits[split] = Split([text for text, _ in full], [label for _, label in full])
            empty[split] = len(rows) - len(full)
        return RawTask(
            name=name,
            class_names=entry.class_names,
            label_range=None if entry.class_names else (0.0, 5.0),
            metric=entry.metric,
            columns=len(entry.columns),
            splits=splits,
            provenance={
                "source": source,
                "licence": "see gluebenchmark.com; research use",
                "splits": {TRAIN: f"GLUE {name} train", TEST: f"GLUE {name} validation (the test labels are hidden)"},
                "empty_rows_left_out": empty,
            },
        )

    def _files(self, name: str) -> dict[str, list[Path]]:
        assert self.folder is not None, "only called for a local mirror"
        found = {
            TRAIN: find_tables(self.folder / name, "train"),
            TEST: find_tables(self.folder / name, "validation", "validation_matched"),
        }
        for split, paths in found.items():
            if not paths:
                stem = "train" if split == TRAIN else "validation"
                raise UserError(
                    f"the GLUE task {name} is not in the local mirror",
                    key="paths.data" if self.is_copy else "paths.mirror",
                    found=self.folder / name,
                    expected=f"{stem}.parquet or {stem}.jsonl in that folder, {stem}-00000-of-00001.parquet, or a folder of save_to_disk",
                    hint="paths.data=null reads from the hub" if self.is_copy else "scripts/mirror.py fetches it",
                )
        return found


def _find(name: str) -> Entry:
    if name not in TASKS:
        raise unknown("tasks.names", name, TASKS, "task")
    return TASKS[name]


def _hub_columns(name: str, columns: Sequence[str]) -> dict[str, list[list[Any]]]:
    import datasets

    official = {TRAIN: "train", TEST: OFFICIAL.get(name, "validation")}
    try:
        data = datasets.load_dataset(HUB, name, revision=REVISION)
    except Exception as error:  # the hub client raises dozens of types for no network, a proxy, a login, a full disk
        raise UserError(
            f"cannot read {HUB} from the hub ({type(error).__name__}: {' '.join(str(error).split())[:200]})",
            key="paths.data",
            found=None,
            expected=f"a folder with glue/{name}/train.parquet and validation.parquet, or a network",
            hint="tasks=offline_text needs no hub",
        ) from error
    return {split: [list(data[theirs][column]) for column in columns] for split, theirs in official.items()}


TASKS = {
    "cola": Entry(("sentence",), ("unacceptable", "acceptable"), "matthews"),
    "sst2": Entry(("sentence",), ("negative", "positive")),
    "mrpc": Entry(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), "accuracy_f1"),
    "stsb": Entry(("sentence1", "sentence2"), (), "pearson_spearman"),
    "qqp": Entry(("question1", "question2"), ("not_duplicate", "duplicate"), "accuracy_f1"),
    "mnli": Entry(("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qnli": Entry(("question", "sentence"), ("entailment", "not_entailment")),
    "rte": Entry(("sentence1", "sentence2"), ("entailment", "not_entailment")),
}
