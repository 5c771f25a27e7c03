"""tf-idf and softmax by loops over rows and tokens, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def idf(rows: Sequence[Sequence[int]], vocabulary: int) -> np.ndarray:
    """1 + ln((1 + n)/(1 + n_i)) of every token i that a row has, 0 of the others: (V)."""
    found = np.zeros(vocabulary)
    for token in range(vocabulary):
        having = sum(token in row for row in rows)
        if having:
            found[token] = 1 + math.log((1 + len(rows)) / (1 + having))
    return found


def features(row: Sequence[int], weights: np.ndarray, sublinear: bool) -> np.ndarray:
    """The row's tf-idf of length 1, (V), or zeros where it has no known token; ids from V on are not known."""
    found = np.zeros(len(weights))
    for token in set(row):
        if token < len(weights):
            count = sum(other == token for other in row)
            found[token] = (1 + math.log(count) if sublinear else count) * weights[token]
    length = math.sqrt(sum(value * value for value in found))
    return found / length if length else found


def probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logits/temperature) of a row, (T)."""
    powers = [math.exp((value - max(logits)) / temperature) for value in logits]
    return np.array([power / sum(powers) for power in powers])
