"""Jobs that differ in nothing but their seed, joined: a method with means and confidence intervals over seeds."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

# What says only where files go; it cannot change a result.
IRRELEVANT = ("seed", "paths", "tracker", "cache", "sweep")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the half-width of its 95 % confidence interval (None for one seed)."""

    mean: float
    half_width: float | None

    def text(self, scale: float = 1.0, decimals: int = 1) -> str:
        """``81.7 ± 0.3``"""
        mean = f"{self.mean * scale:.{decimals}f}"
        return mean if self.half_width is None else f"{mean} ± {self.half_width * scale:.{decimals}f}"


def estimate(values: Sequence[float | None]) -> Estimate | None:
    """Mean and half-width t(0.975, n−1)·s/√n of n values; None if one is missing, as then the seeds are not equals."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    count = len(known)
    mean = sum(known) / count
    if count == 1:
        return Estimate(mean, None)
    from scipy.special import stdtrit

    deviation = sqrt(sum((value - mean) ** 2 for value in known) / (count - 1))
    return Estimate(mean, float(stdtrit(count - 1, 0.975)) * deviation / sqrt(count))


@dataclass(frozen=True)
class Method:
    """One row of a table: the results of one configuration, one result a seed."""

    label: str
    heads: str
    results: tuple[dict[str, Any], ...]
    repeats: int = 0  # jobs left out because another job has the same seed

    @property
    def seeds(self) -> list[int]:
        return [result["seed"] for result in self.results]

    def value(self, key: str) -> Estimate | None:
        """A number of the whole job, such as ``average_normalized``, over seeds."""
        return estimate([result[key] for result in self.results])

    def task_value(self, task: str, key: str) -> Estimate | None:
        """A number of a task, such as ``raw``, over seeds; None where this method was not run on the task."""
        if task not in self.results[0]["tasks"]:
            return None
        return estimate([result["tasks"][task][key] for result in self.results])

    def interval(self, task: str) -> tuple[float, float] | None:
        """95 % interval of the raw score: over seeds if there are several, else over the test rows."""
        raw = self.task_value(task, "raw")
        if raw is None:
            return None
        if raw.half_width is not None:
            return raw.mean - raw.half_width, raw.mean + raw.half_width
        bounds = self.results[0]["tasks"][task]["confidence_interval"]
        return (bounds[0], bounds[1]) if bounds else None


def join_seeds(results: Sequence[dict[str, Any]]) -> list[Method]:
    """Methods in the order of their first job. Two methods never share both label and heads: overrides tell them apart."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        groups[_identity(result)].append(result)
    methods = []
    for group in groups.values():
        last_of_seed = {result["seed"]: result for result in group}
        first = group[0]
        kept = tuple(last_of_seed.values())
        methods.append(Method(first["label"], first["heads"], kept, len(group) - len(kept)))
    return _tell_apart(methods)


def task_metrics(results: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Task -> metric, in the order in which tasks first appear."""
    metrics: dict[str, str] = {}
    for result in results:
        for name, task in result["tasks"].items():
            metrics.setdefault(name, task["metric"])
    return metrics


def _identity(result: dict[str, Any]) -> str:
    config = result["provenance"].get("config") or {}
    unread = _unread(result)
    parts = [result[key] for key in ("exp", "suite", "backbone", "merge_method", "label", "heads")]
    parts += [sorted(result["tasks"]), {key: value for key, value in config.items() if key not in unread}]
    return json.dumps(parts, sort_keys=True)


def _unread(result: dict[str, Any]) -> set[str]:
    """What a job's result does not depend on: a sweep over ranks repeats the jobs that compress nothing."""
    return {*IRRELEVANT, *(() if result["merge_method"] == "twin" else ("sparsifier",))}


def _tell_apart(methods: list[Method]) -> list[Method]:
    """Add to equal labels the overrides in which they differ, and a number if that does not help."""
    named: list[Method] = []
    for method in methods:
        rivals = [rival for rival in methods if (rival.label, rival.heads) == (method.label, method.heads)]
        label = method.label
        if len(rivals) > 1:
            common = set.intersection(*(_overrides(rival) for rival in rivals))
            own = sorted(_overrides(method) - common)
            label += f" [{', '.join(own)}]" if own else ""
        taken = {other.label for other in named if other.heads == method.heads}
        number = next(n for n in range(1, len(methods) + 2) if _numbered(label, n) not in taken)
        named.append(replace(method, label=_numbered(label, number)))
    return named


def _numbered(label: str, number: int) -> str:
    return label if number == 1 else f"{label} #{number}"


def _overrides(method: Method) -> set[str]:
    unread = _unread(method.results[0])
    everywhere = {item for result in method.results for item in result["provenance"].get("overrides") or ()}
    return {item for item in everywhere if item.lstrip("+").split("=")[0].split(".")[0] not in unread}
