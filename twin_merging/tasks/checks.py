"""A row that cannot be used is refused before any work starts, by task, split and row."""

from __future__ import annotations

import math

from twin_merging.errors import UserError
from twin_merging.tasks.base import RawTask, Split


def check_rows(raw: RawTask) -> None:
    """Check each text and label of a source.

    Raises:
        UserError: for a split without rows, an empty text, a row with too few or too many texts, a label outside the
            classes, or one that is not a number in the label range.
    """
    for name, split in raw.splits.items():
        check_not_empty(raw.name, name, split, raw.provenance["splits"][name])
        for row, (texts, label) in enumerate(zip(split.texts, split.labels, strict=True)):
            where = f"task {raw.name}, {name} row {row}"
            _check_texts(raw, texts, where)
            (_check_class if raw.class_names else _check_number)(raw, label, where)


def check_not_empty(task: str, split: str, rows: Split, origin: str) -> None:
    """Raise if the split has no rows.

    Raises:
        UserError: naming the task, the split and ``origin``: where its rows come from.
    """
    if len(rows) == 0:
        raise UserError(
            "the split has no rows",
            key=f"task {task}, {split}",
            found=0,
            expected="at least one row",
            hint=f"its rows come from: {origin}",
        )


def _check_texts(raw: RawTask, texts: tuple[str, ...], where: str) -> None:
    if len(texts) != raw.columns:
        raise UserError("wrong number of texts", key=where, found=len(texts), expected=raw.columns)
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise UserError("empty text or none", key=where, found=repr(text), expected="a text")
        if not text.isascii():
            _check_unicode(text, where)


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = ascii(text[max(0, error.start - 20) : error.end + 20])
        raise UserError("the text is not valid Unicode", key=where, found=found, expected="no lone surrogate") from None


def _check_class(raw: RawTask, label: object, where: str) -> None:
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(raw.class_names):
        known = ", ".join(f"{index} ({name})" for index, name in enumerate(raw.class_names))
        raise UserError("the label is none of the task's classes", key=where, found=repr(label), expected=known)


def _check_number(raw: RawTask, label: object, where: str) -> None:
    low, high = raw.label_range or (-math.inf, math.inf)
    if isinstance(label, bool) or not isinstance(label, (int, float)) or not math.isfinite(label):
        raise UserError("the label is not a finite number", key=where, found=repr(label), expected=f"{low} to {high}")
    if not low <= label <= high:
        raise UserError("the label is out of its range", key=where, found=label, expected=f"{low} to {high}")
