"""Raw and normalized scores of one job (paper section 4.1, equation 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from twin_merging.evaluation.metrics import confidence_interval, metrics
from twin_merging.tasks.base import TEST, Task

REFERENCE = "finetuned expert of each task, own head, same test rows"
PUBLISHED = "published score of each task's expert, whatever its rows"


def normalized(raw: float, reference: float) -> float | None:
    """100 · raw/reference, in percent; None where the reference is not above 0, for which no ratio has a meaning."""
    return 100 * (raw / reference) if reference > 0 else None  # 100 exactly where they are equal


def average_normalized(values: list[float | None]) -> float | None:
    """The mean over tasks of their normalized scores: a mean of ratios, not a ratio of means."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def score(task: Task, answers: list, reference_answers: list | None) -> dict[str, Any]:
    """One task's entry of results.json: metric, raw, reference, normalized, rows, confidence_interval.

    ``reference_answers`` are None where no expert of the task is: then neither is there a reference or a normalized score.
    """
    metric, labels = metrics[task.metric], task.splits[TEST].labels
    raw = metric(answers, labels)
    reference = None if reference_answers is None else metric(reference_answers, labels)
    return {
        "metric": task.metric,
        "raw": raw,
        "reference": reference,
        "normalized": None if reference is None else normalized(raw, reference),
        "rows": len(labels),
        "confidence_interval": list(confidence_interval(metric, answers, labels)),
    }


def averages(tasks: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """``average_raw`` and ``average_normalized`` over tasks' entries."""
    return {
        "average_raw": fmean(entry["raw"] for entry in tasks.values()),
        "average_normalized": average_normalized([entry["normalized"] for entry in tasks.values()]),
    }


def by_published(
    tasks: dict[str, dict[str, Any]], published: Mapping[str, float], merged: Sequence[str]
) -> dict[str, Any]:
    """A record's scores relative to published ones: ``tasks``, their averages over the ``merged`` ones, and ``reference``.

    Args:
        tasks: entries of results.json, whose ``reference`` is what each expert scores here; it becomes ``measured``.
        published: in percent, of every merged task.
    """
    found = {}
    for name, entry in tasks.items():
        known = published[name] / 100 if name in published else None
        ratio = None if known is None else normalized(entry["raw"], known)
        found[name] = {**entry, "measured": entry["reference"], "reference": known, "normalized": ratio}
    return {**averages({name: found[name] for name in merged}), "reference": PUBLISHED, "tasks": found}
