"""TIES-Merging over a whole model, one number at a time."""

from __future__ import annotations

import numpy as np

Model = dict[str, np.ndarray]


def ties(
    base: Model, deltas: list[Model], *, density: float, threshold: str, zero_sign: str, reduction: str, scaling: float
) -> Model:
    """θ₀ + λ · (mean or sum of the trimmed numbers that have the elected sign)."""
    kept = [trimmed(delta, density, threshold) for delta in deltas]
    votes = [
        sign(sum(float(expert[name][at]) for expert in kept)) for name in base for at in np.ndindex(base[name].shape)
    ]
    for_zero = {"majority": 1.0 if sum(votes) >= 0 else -1.0, "positive": 1.0, "drop": 0.0}[zero_sign]
    merged = {}
    for name, start in base.items():
        merged[name] = np.array(start, np.float64)
        for at in np.ndindex(start.shape):
            numbers = [float(expert[name][at]) for expert in kept]
            elected = sign(sum(numbers)) or for_zero
            agreeing = [number for number in numbers if number != 0 and sign(number) == elected]
            if agreeing:
                total = sum(agreeing)
                merged[name][at] += scaling * (total / len(agreeing) if reduction == "mean" else total)
    return merged


def trimmed(delta: Model, density: float, threshold: str) -> Model:
    """The numbers of largest magnitude; the rest is zero."""
    everything = [abs(float(number)) for values in delta.values() for number in values.flat]
    kept = {}
    for name, values in delta.items():
        among = everything if threshold == "global" else [abs(float(number)) for number in values.flat]
        smallest = smallest_kept(among, density)
        kept[name] = np.array(values, np.float64)
        for at in np.ndindex(values.shape):
            if abs(float(values[at])) < smallest:
                kept[name][at] = 0.0
    return kept


def smallest_kept(magnitudes: list[float], density: float) -> float:
    """The last of the ⌊density · n⌋ largest; infinite if there is none."""
    number = int(density * len(magnitudes))
    return sorted(magnitudes, reverse=True)[number - 1] if number else float("inf")


def sign(number: float) -> float:
    return 1.0 if number > 0 else -1.0 if number < 0 else 0.0
