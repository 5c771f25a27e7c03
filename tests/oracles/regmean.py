"""RegMean as what it solves: least squares on the stacked inputs of all experts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def least_squares(weights: Sequence[np.ndarray], inputs: Sequence[np.ndarray]) -> np.ndarray:
    """W (out, in) with the smallest Σ_t ‖X_t Wᵀ − X_t W_tᵀ‖², and of those the one nearest to the mean of the W_t."""
    mean = sum(weights) / len(weights)
    rows = np.concatenate(inputs)
    wanted = np.concatenate([x @ (w - mean).T for x, w in zip(inputs, weights, strict=True)])
    return mean + np.linalg.lstsq(rows, wanted, rcond=1e-10)[0].T


def regmean(weights: Sequence[np.ndarray], inputs: Sequence[np.ndarray], off_diagonal: float) -> np.ndarray:
    """Σ W_t G_t (Σ G_t)⁻¹ with G_t = XᵀX made one number at a time, those off the diagonal times a factor."""
    size = inputs[0].shape[1]
    total, pulls = np.zeros((size, size)), np.zeros(weights[0].shape)
    for weight, rows in zip(weights, inputs, strict=True):
        gram = np.zeros((size, size))
        for i in range(size):
            for j in range(size):
                factor = 1.0 if i == j else off_diagonal
                gram[i, j] = factor * sum(float(row[i]) * float(row[j]) for row in rows)
        total += gram
        pulls += weight @ gram
    return pulls @ np.linalg.inv(total)
