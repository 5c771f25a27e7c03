"""Where a router sends rows whose task is unknown, and what the wrong routes cost. Pure functions of what was answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from torch import Tensor

from twin_merging.evaluation.metrics import metrics
from twin_merging.tasks.base import TEST, Task

ANSWERS = ("expert", "oracle", "routed")
"""Who answers a row: its own task's expert; the own task's head under the routed weights; the head of the top task."""


def confusion(top: Sequence[Tensor], tasks: int) -> dict[str, Any]:
    """Counts and shares of true task × top task.

    Args:
        top: for each task, the top task of each of its rows, (rows).
        tasks: T.

    Returns:
        ``counts`` (T × T), ``shares`` (each row of counts over its sum), ``accuracy`` over all rows, ``by_task``.
    """
    counts = [rows.bincount(minlength=tasks).tolist() for rows in top]
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    right = sum(row[index] for index, row in enumerate(counts))
    return {
        "counts": counts, "shares": shares, "accuracy": right / max(sum(map(sum, counts)), 1),
        "by_task": [row[index] for index, row in enumerate(shares)],
    }  # fmt: skip


def cost_of_wrong_routes(
    task: Task, routed_right: Sequence[bool], answers: Mapping[str, list], mixed: bool = True
) -> dict[str, Any]:
    """What a task loses because some of its rows were sent to another one.

    With S the task's metric over all rows, and the wrong routes' answers replaced by better ones step by step,

        S(routed) → S(oracle), the own head reads what the mixed weights gave → S(rescued), the own expert answers.

    ``lost_by_heads`` = S(oracle) − S(routed) is what the wrong heads cost; ``lost_by_weights`` = S(rescued) − S(oracle) is
    about what the wrong weights cost. The expert stands in for the model under the right weights, which would take another
    pass: it lacks what compression takes. Rows that were routed right have the same answer in all three.

    Args:
        routed_right: of each row, whether its top task is its own.
        answers: each of ``ANSWERS`` -> answer of every row.
        mixed: whether the routes decide on weights; if not, wrong ones cost by their heads alone, and ``lost_by_weights``
            is None.

    Returns:
        Plain JSON: ``metric``; ``rows``, ``wrong`` routes; ``score``, of each of ``ANSWERS`` and ``rescued``; ``lost``, the two
        differences together, ``lost_by_heads`` and ``lost_by_weights``, in the metric's units; and of the rows routed
        ``right_routes`` and ``wrong_routes``, what ``_quality`` says of each of ``ANSWERS``.
    """
    labels, metric = task.splits[TEST].labels, metrics[task.metric]
    rescued = [
        expert if mixed and not right else oracle
        for right, oracle, expert in zip(routed_right, answers["oracle"], answers["expert"], strict=True)
    ]
    score = {who: metric(answers[who], labels) for who in ANSWERS} | {"rescued": metric(rescued, labels)}
    groups = {}
    for name, wanted in (("right_routes", True), ("wrong_routes", False)):
        rows = [row for row, right in enumerate(routed_right) if bool(right) is wanted]
        groups[name] = _quality(task, rows, answers)
    return {
        "metric": task.metric, "rows": len(labels), "wrong": groups["wrong_routes"]["rows"], "score": score,
        "lost": score["rescued"] - score["routed"], "lost_by_heads": score["oracle"] - score["routed"],
        "lost_by_weights": score["rescued"] - score["oracle"] if mixed else None, **groups,
    }  # fmt: skip


def _quality(task: Task, rows: list[int], answers: Mapping[str, list]) -> dict[str, Any]:
    """Of some rows: how many there are, and for each of ``ANSWERS`` how many are ``correct``; of a regression, the mean
    ``absolute_error``, None without rows."""
    labels = task.splits[TEST].labels
    if task.kind == "single_label":
        correct = {who: sum(answers[who][row] == labels[row] for row in rows) for who in ANSWERS}
        return {"rows": len(rows), "correct": correct}
    errors = {who: fmean(abs(answers[who][row] - labels[row]) for row in rows) if rows else None for who in ANSWERS}
    return {"rows": len(rows), "absolute_error": errors}
