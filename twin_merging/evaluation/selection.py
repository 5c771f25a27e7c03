"""Every choice made on data goes through here: it is recorded with the rows it was made on, and test rows are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twin_merging.errors import UserError
from twin_merging.tasks.base import TEST, Task

Choice = dict[str, Any]
"""what, chosen, split, rows, fingerprint, scores: plain JSON."""


def choose(what: str, scores: Mapping[Any, float], tasks: Task | list[Task], split: str) -> Choice:
    """The candidate with the highest score, the first of equals, and the record of the choice.

    Args:
        what: what is chosen, such as ``scaling``.
        scores: candidate -> score.
        tasks: whose rows gave the scores.
        split: which of their splits; ``train`` or ``validation``.

    Raises:
        UserError: if the split is the test split, or holds one of its rows.
    """
    tasks = tasks if isinstance(tasks, list) else [tasks]
    refuse_test(what, tasks, split)
    rows = sum(len(task.splits[split]) for task in tasks)
    return record(what, scores, split, rows, {task.name: task.fingerprint(split) for task in tasks})


def record(what: str, scores: Mapping[Any, float], split: str, rows: int, fingerprints: Mapping[str, str]) -> Choice:
    """The candidate with the highest score, the first of equals, of rows that the caller knows to be none of a test split."""
    return {
        "what": what,
        "chosen": max(scores, key=lambda candidate: scores[candidate]),
        "split": split,
        "rows": rows,
        "fingerprints": dict(fingerprints),
        "scores": {str(candidate): score for candidate, score in scores.items()},
    }


def unlabelled(what: str, chosen: Any, scores: Mapping[Any, float], tasks: list[Task], split: str) -> Choice:
    """The record of what was learned from a split's inputs alone, which may be those of the test split: no label was read."""
    return {
        "what": what,
        "chosen": chosen,
        "split": f"unlabelled {split} inputs",
        "rows": sum(len(task.splits[split]) for task in tasks),
        "fingerprints": {task.name: task.fingerprint(split) for task in tasks},
        "scores": dict(scores),
    }


def refuse_test(what: str, tasks: list[Task], split: str) -> None:
    """Raise a UserError if ``split`` is, or holds a row of, the test split of one of ``tasks``."""
    for task in tasks:
        if split == TEST or not set(task.splits[split].texts).isdisjoint(task.splits[TEST].texts):
            raise UserError(
                "nothing may be selected on test rows", key=what, found=f"the {split} split of {task.name}",
                expected="validation rows, cut from the training set",
            )  # fmt: skip
