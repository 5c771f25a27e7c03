"""What sparsifiers keep, one number at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np


def at_least(values: np.ndarray, threshold: float) -> np.ndarray:
    """The numbers whose magnitude reaches the threshold, zeros elsewhere."""
    kept = np.zeros(values.shape)
    for place in product(*map(range, values.shape)):
        if abs(values[place]) >= threshold:
            kept[place] = values[place]
    return kept


def fraction_threshold(numbers: Sequence[float], fraction: float) -> float:
    """The magnitude of the ⌊fraction·n⌋-th largest, at least of the largest."""
    falling = sorted((abs(number) for number in numbers), reverse=True)
    return falling[max(1, int(np.floor(fraction * len(falling)))) - 1]


def energy_threshold(numbers: Sequence[float], share: float) -> float:
    """The magnitude of the number with which the squares, added from the largest on, reach their share of the total."""
    falling = sorted((abs(number) for number in numbers), reverse=True)
    total, added = sum(number**2 for number in falling), 0.0
    for number in falling:
        added += number**2
        if added >= share * total * (1 - 1e-12):
            return number
    return 0.0


def ranks_under_a_budget(spectra: Mapping[str, np.ndarray], costs: Mapping[str, int], room: int) -> dict[str, int]:
    """Triplets given one at a time to the matrix whose next one adds most energy a byte.

    Args:
        spectra: singular values (T, k), by name.
        costs: bytes of one triplet of all experts.
    """
    ranks, open_ = dict.fromkeys(spectra, 0), set(spectra)
    while open_:
        worth = {}
        for name in open_:
            r = ranks[name]
            if r == spectra[name].shape[1] or costs[name] > room:
                continue
            worth[name] = sum(S[r] ** 2 for S in spectra[name]) / costs[name]
        open_ = set(worth)
        if worth:
            best = max(worth, key=lambda name: worth[name])
            ranks[best] += 1
            room -= costs[best]
    return ranks
