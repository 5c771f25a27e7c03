"""Rows that a router is not trained on, and what is chosen on them. Test rows are refused."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from twin_merging.evaluation.selection import Choice, choose
from twin_merging.tasks.base import VALIDATION, Task

Rows = TypeVar("Rows", Tensor, Sequence[Sequence[int]])


def split(inputs: list[Rows], rows: int | None, holdout: float) -> tuple[list[Rows], list[Rows]]:
    """(rows to train on, rows held out) of each task, the same share of each.

    Args:
        inputs: for each task, what the router reads of its rows.
        rows: how many of a task are used, at most.
        holdout: the share of them that is held out, at least one row.
    """
    used = [given[:rows] for given in inputs]
    held = [held_out(len(given), None, holdout) for given in used]
    return (
        [given[count:] for given, count in zip(used, held, strict=True)],
        [given[:count] for given, count in zip(used, held, strict=True)],
    )


def held_out(count: int, rows: int | None, holdout: float) -> int:
    """How many of a task's first ``count`` rows, of which at most ``rows`` are used, no router is trained on."""
    return max(1, round(holdout * min(count, rows or count)))


def labels(parts: Sequence[Sized]) -> Tensor:
    """The task of each row, (rows), one task's after the other's."""
    return torch.cat([torch.full((len(part),), task) for task, part in enumerate(parts)])


def log_likelihood(logits: Tensor, y: Tensor) -> float:
    """The mean log likelihood of the rows' tasks ``y``, (rows), under logits (rows, T)."""
    return -float(F.cross_entropy(logits, y))


def calibrate(logits: Tensor, y: Tensor, tasks: list[Task], split: str = VALIDATION) -> Choice:
    """The temperature, of 2^-3 to 2^3, under which the held-out rows are most likely (Guo et al., 2017)."""
    grid = [2 ** (step / 4) for step in range(-12, 13)]
    scores = {value: log_likelihood(logits / value, y) for value in grid}
    return choose("temperature of the router", scores, tasks, split)


def report(logits: Tensor, y: Tensor, train_rows: int, temperature: float, choices: list[Choice]) -> dict[str, Any]:
    """Plain JSON: accuracy on the rows held out, temperature, how many rows trained it, and the choices made."""
    return {
        "holdout_accuracy": float((logits.argmax(-1) == y).float().mean()), "temperature": temperature,
        "train_rows": train_rows, "holdout_rows": len(y), "choices": choices,
    }  # fmt: skip
