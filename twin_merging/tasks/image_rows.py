"""From images with labels, as a source reads them in passing, to splits of keys and class indices, and a task of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from twin_merging.errors import UserError, nearest
from twin_merging.tasks.base import RawTask, Split
from twin_merging.tasks.image_files import Row, SourceImages


def read_split(rows: Iterable[Row], images: SourceImages, names: Sequence[str]) -> Split:
    """The keys of images, which are added to ``images``, and their class indices.

    Args:
        names: of the classes; a label is one of them or its index.

    Raises:
        UserError: for a label that is neither.
    """
    split, index = Split([], []), {name: number for number, name in enumerate(names)}
    for row in rows:
        split.texts.append((images.add(row.data, row.place),))
        split.labels.append(_label(row, index))
    return split


def image_task(
    name: str, classes: tuple[str, ...], splits: dict[str, Split], images: Mapping[str, bytes], provenance: dict[str, Any]
) -> RawTask:  # fmt: skip
    """A classification of images, scored by accuracy."""
    return RawTask(
        name=name, class_names=classes, label_range=None, metric="accuracy", columns=1, splits=splits,
        provenance=provenance, images=images,
    )  # fmt: skip


def _label(row: Row, index: dict[str, int]) -> int:
    label = row.label
    if isinstance(label, str) and label in index:
        return index[label]
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(index):
        return label
    raise UserError(
        "the label is none of the task's classes",
        key=row.where,
        found=repr(label),
        expected=f"0 to {len(index) - 1}, or one of {', '.join(list(index)[:20])}"
        + (" ..." if len(index) > 20 else ""),
        nearest=nearest(label, index) if isinstance(label, str) else None,
    )
