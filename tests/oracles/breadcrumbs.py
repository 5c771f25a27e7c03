"""Model Breadcrumbs, one number at a time."""

from __future__ import annotations

import numpy as np

from oracles.ties import Model


def breadcrumbs(base: Model, deltas: list[Model], *, bottom: float, top: float, scaling: float) -> Model:
    """θ₀ + λ Σ of each tensor's numbers without its smallest and largest."""
    merged = {}
    for name, start in base.items():
        merged[name] = np.array(start, np.float64)
        for delta in deltas:
            middle = between([abs(float(number)) for number in delta[name].flat], bottom, top)
            for at in np.ndindex(start.shape):
                if abs(float(delta[name][at])) in middle:
                    merged[name][at] += scaling * float(delta[name][at])
    return merged


def between(magnitudes: list[float], bottom: float, top: float) -> set[float]:
    """The magnitudes left when the smallest and largest are taken away one by one, by number."""
    ordered = sorted(magnitudes)
    smallest, largest = int(bottom * len(ordered)), int(top * len(ordered))
    return set(ordered[smallest : len(ordered) - largest]) if smallest + largest < len(ordered) else set()
