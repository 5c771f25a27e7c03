"""Tasks whose only use is that a router's choices are recorded with their validation rows."""

from __future__ import annotations

from twin_merging.tasks.base import Split, Task


def task_of(name: str, rows: int, test: int | None = None) -> Task:
    """A task whose validation rows are ``rows`` texts, and whose test rows are others, or the same if ``test`` is 0."""

    def split(part: str, count: int) -> Split:
        return Split([(f"{name} {part} {row}",) for row in range(count)], [row % 2 for row in range(count)])

    validation = split("validation", rows)
    splits = {
        "train": split("train", 4),
        "validation": validation,
        "test": validation if test == 0 else split("test", 4),
    }
    return Task(name, "single_label", ("no", "yes"), None, "accuracy", splits, {})


def tasks(rows: int = 60) -> list[Task]:
    """Three of them."""
    return [task_of(name, rows) for name in ("a", "b", "c")]
