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
from twin_merging.tasks.base import TEST, TRAIN, RawTask, Split
from twin_merging.tasks.tables import find_table, read_columns

HUB = "nyu-mll/glue"
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
        paths: rows are read from ``data``/glue/TASK/{train,validation}.{parquet,jsonl} if ``data`` is set, else from the
            hub.
    """

    def __init__(self, options: config.Tasks, paths: config.Paths):
        self.folder = Path(paths.data).expanduser() / "glue" if paths.data else None

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
        return {**about, "files": {path.name: sha256_of(path) for path in self._files(name).values()}}

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
            tables = {split: read_columns(path, columns) for split, path in self._files(name).items()}
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

    def _files(self, name: str) -> dict[str, Path]:
        assert self.folder is not None, "only called for a local mirror"
        found = {
            TRAIN: find_table(self.folder / name, "train"),
            TEST: find_table(self.folder / name, "validation", "validation_matched"),
        }
        for split, path in found.items():
            if path is None:
                stem = "train" if split == TRAIN else "validation"
                raise UserError(
                    f"the GLUE task {name} is not in the local mirror",
                    key="paths.data",
                    found=self.folder / name,
                    expected=f"{stem}.parquet or {stem}.jsonl in that folder",
                    hint="paths.data=null reads from the hub",
                )
        return {split: path for split, path in found.items() if path is not None}


def _find(name: str) -> Entry:
    if name not in TASKS:
        raise unknown("tasks.names", name, TASKS, "task")
    return TASKS[name]


def _hub_columns(name: str, columns: Sequence[str]) -> dict[str, list[list[Any]]]:
    import datasets

    official = {TRAIN: "train", TEST: "validation_matched" if name == "mnli" else "validation"}
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
