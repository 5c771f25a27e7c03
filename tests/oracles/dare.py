"""DARE with given masks, one number at a time."""

from __future__ import annotations

import numpy as np

from oracles.ties import Model, ties


def dropped(deltas: list[Model], kept: list[dict[str, np.ndarray]], factor: float) -> list[Model]:
    """Each number times ``factor`` where the mask keeps it, else 0."""
    result = []
    for delta, mask in zip(deltas, kept, strict=True):
        result.append({name: np.zeros(values.shape) for name, values in delta.items()})
        for name, values in delta.items():
            for at in np.ndindex(values.shape):
                if mask[name][at]:
                    result[-1][name][at] = float(values[at]) * factor
    return result


def dare_task_arithmetic(
    base: Model, deltas: list[Model], kept: list[dict[str, np.ndarray]], *, factor: float, scaling: float
) -> Model:
    """θ₀ + λ Σ of what is left."""
    left = dropped(deltas, kept, factor)
    merged = {}
    for name, start in base.items():
        merged[name] = np.array(start, np.float64)
        for at in np.ndindex(start.shape):
            merged[name][at] += scaling * sum(float(delta[name][at]) for delta in left)
    return merged


def dare_ties(
    base: Model, deltas: list[Model], kept: list[dict[str, np.ndarray]], *, factor: float, **options
) -> Model:
    """TIES of what is left."""
    return ties(base, dropped(deltas, kept, factor), **options)
