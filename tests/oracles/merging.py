"""Static merging, one number at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def task_arithmetic(base: np.ndarray, experts: Sequence[np.ndarray], scaling: float) -> np.ndarray:
    """θ₀ + λ Σ (θ_t − θ₀)"""
    return _each_number(base, experts, lambda start, tuned: start + scaling * sum(value - start for value in tuned))


def weight_averaging(base: np.ndarray, experts: Sequence[np.ndarray]) -> np.ndarray:
    """(1/T) Σ θ_t"""
    return _each_number(base, experts, lambda start, tuned: sum(tuned) / len(tuned))


def exclusive_knowledge(experts: Sequence[np.ndarray], shared: np.ndarray) -> np.ndarray:
    """θ_t − θ_s, stacked."""
    return np.stack([np.asarray(expert, np.float64) - np.asarray(shared, np.float64) for expert in experts])


def _each_number(
    base: np.ndarray, experts: Sequence[np.ndarray], rule: Callable[[float, list[float]], float]
) -> np.ndarray:
    merged = np.empty(base.shape, np.float64)
    for position in np.ndindex(*base.shape):
        merged[position] = rule(float(base[position]), [float(expert[position]) for expert in experts])
    return merged
