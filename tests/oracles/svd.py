"""Truncated singular value decomposition by numpy, one matrix at a time."""

from __future__ import annotations

import numpy as np


def best_approximation(matrix: np.ndarray, r: int) -> np.ndarray:
    """The matrix of rank r that is nearest to ``matrix`` (Eckart and Young)."""
    U, S, Vt = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return sum((S[k] * np.outer(U[:, k], Vt[k]) for k in range(r)), np.zeros(matrix.shape))


def tail(matrix: np.ndarray, r: int) -> float:
    """The distance to it: the root of the sum of the squared singular values beyond the first r."""
    singular = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    return float(np.sqrt(sum(value**2 for value in singular[r:])))
