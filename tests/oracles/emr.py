"""EMR-Merging, one number at a time."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np


def elect(task_vectors: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """τ and the masks M_t of one parameter"""
    unified = np.zeros(task_vectors[0].shape)
    for position in np.ndindex(*unified.shape):
        numbers = [float(vector[position]) for vector in task_vectors]
        total = sum((Fraction(number) for number in numbers), Fraction(0))  # exact, so that no sign is rounding's
        if total > 0:
            unified[position] = max(number for number in numbers if number > 0)
        elif total < 0:
            unified[position] = min(number for number in numbers if number < 0)
    masks = [np.zeros(unified.shape, bool) for _ in task_vectors]
    for mask, vector in zip(masks, task_vectors, strict=True):
        for position in np.ndindex(*unified.shape):
            mask[position] = vector[position] * unified[position] > 0
    return unified, masks


def rebuilt(task_vectors: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """λ_t M_t ⊙ τ of each task, λ_t over all parameters"""
    elections = {name: elect([vectors[name] for vectors in task_vectors]) for name in task_vectors[0]}
    found = []
    for t, vectors in enumerate(task_vectors):
        own = sum(abs(float(number)) for vector in vectors.values() for number in vector.flat)
        masked = {name: np.where(masks[t], unified, 0.0) for name, (unified, masks) in elections.items()}
        kept = sum(abs(float(number)) for vector in masked.values() for number in vector.flat)
        found.append({name: (own / kept if kept else 0.0) * vector for name, vector in masked.items()})
    return found
