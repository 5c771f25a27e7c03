"""What a task is: texts or images with labels in three splits, and which metric scores it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)


@dataclass(frozen=True)
class Split:
    """Rows of a task: ``texts[i]`` has one text, or two for a pair; ``labels[i]`` is a class index or a number.

    The text of an image is its key: the hexadecimal SHA-256 of its encoded bytes.
    """

    texts: list[tuple[str, ...]]
    labels: list[int] | list[float]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: list[int]) -> Split:
        """These rows, in this order."""
        return Split([self.texts[row] for row in rows], [self.labels[row] for row in rows])  # type: ignore[arg-type]

    def fingerprint(self) -> str:
        """SHA-256 of the rows: equal for equal texts and labels in equal order."""
        digest = hashlib.sha256()
        for texts, label in zip(self.texts, self.labels, strict=True):
            digest.update(json.dumps([*texts, label]).encode() + b"\n")
        return digest.hexdigest()


@dataclass(frozen=True)
class RawTask:
    """A task as its source gives it, before it is cleaned and split.

    Args:
        class_names: the name of each class index; empty for regression.
        label_range: the lowest and highest label of a regression; None for classes.
        metric: the metric's name, such as ``accuracy``.
        columns: texts a row, 1 or 2.
        splits: any of ``train``, ``validation`` and ``test``.
        provenance: plain JSON: ``source``, ``licence`` and, in ``splits``, what each split is.
        images: encoded images by key, each read when it is asked for and fastest in the order of iteration; None for texts.
    """

    name: str
    class_names: tuple[str, ...]
    label_range: tuple[float, float] | None
    metric: str
    columns: int
    splits: dict[str, Split]
    provenance: dict[str, Any]
    images: Mapping[str, bytes] | None = field(default=None, compare=False, repr=False)

    @property
    def kind(self) -> Literal["single_label", "regression"]:
        """``regression`` where labels are numbers, else ``single_label``."""
        return "single_label" if self.class_names else "regression"


@dataclass(frozen=True)
class Task:
    """A task ready for use: three disjoint splits in a seeded order.

    In every split the classes are evenly spread over the order, so that the first n rows are a stratified sample.
    ``images`` has the encoded images by key; it is None for texts. ``pixels`` has them decoded as a backbone sees them, where
    they are kept so. Tasks are equal whatever these are.
    """

    name: str
    kind: Literal["single_label", "regression"]
    class_names: tuple[str, ...]
    label_range: tuple[float, float] | None
    metric: str
    splits: dict[str, Split]
    provenance: dict[str, Any]
    images: Mapping[str, bytes] | None = field(default=None, compare=False, repr=False)
    pixels: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    @property
    def num_labels(self) -> int:
        """Outputs of the task's head: the classes, or 1 for regression."""
        return len(self.class_names) or 1

    @property
    def is_pair(self) -> bool:
        """Whether a row has two texts."""
        return len(self.splits[TRAIN].texts[0]) == 2

    def fingerprint(self, split: str) -> str:
        """SHA-256 of a split's content."""
        return self.splits[split].fingerprint()

    def save(self, folder: Path) -> None:
        """Write ``task.json``, a parquet file for each split and, of a task of images, the encoded images of its rows."""
        import pyarrow
        import pyarrow.parquet

        from twin_merging.tasks.images import save_images, used_keys

        folder.mkdir(parents=True, exist_ok=True)
        label_type = pyarrow.int64() if self.kind == "single_label" else pyarrow.float64()
        for name, split in self.splits.items():
            columns = {f"text_{i}": list(column) for i, column in enumerate(zip(*split.texts, strict=True))}
            table = pyarrow.table({**columns, "label": pyarrow.array(split.labels, label_type)})
            pyarrow.parquet.write_table(table, folder / f"{name}.parquet")
        if self.images is not None:
            save_images(self.images, used_keys(self), folder)
        about = {key: getattr(self, key) for key in _ABOUT}
        (folder / "task.json").write_text(json.dumps(about, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Task:
        """Read what ``save`` wrote: an equal task, whose images stay on disk until they are asked for."""
        import pyarrow.parquet

        from twin_merging.tasks.images import StoredImages, is_stored

        about = json.loads((folder / "task.json").read_text(encoding="utf-8"))
        about["class_names"] = tuple(about["class_names"])
        about["label_range"] = about["label_range"] and tuple(about["label_range"])
        splits = {}
        for name in SPLITS:
            *texts, labels = pyarrow.parquet.read_table(folder / f"{name}.parquet").columns
            splits[name] = Split(list(zip(*(column.to_pylist() for column in texts), strict=True)), labels.to_pylist())
        return cls(splits=splits, images=StoredImages(folder) if is_stored(folder) else None, **about)


_ABOUT = ("name", "kind", "class_names", "label_range", "metric", "provenance")
