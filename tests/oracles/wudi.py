"""WUDI-Merging of one linear layer, task by task, with Adam written out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def disturbance(merged: np.ndarray, task_vectors: Sequence[np.ndarray]) -> float:
    """Σ_t ‖(τ − τ_t) τ_tᵀ‖² / ‖τ_t‖², without tasks whose vector is zero"""
    loss = 0.0
    for vector in task_vectors:
        squares = sum(float(number) ** 2 for number in vector.flat)
        if squares > 0:
            loss += sum(float(number) ** 2 for number in ((merged - vector) @ vector.T).flat) / squares
    return loss


def slope(merged: np.ndarray, task_vectors: Sequence[np.ndarray], step: float = 1e-4) -> np.ndarray:
    """The derivative of the disturbance by central differences, which are exact for what is quadratic."""
    found = np.empty_like(merged)
    for position in np.ndindex(*merged.shape):
        sides = []
        for sign in (1, -1):
            moved = merged.copy()
            moved[position] += sign * step
            sides.append(disturbance(moved, task_vectors))
        found[position] = (sides[0] - sides[1]) / (2 * step)
    return found


def wudi(base: np.ndarray, experts: Sequence[np.ndarray], scaling: float, steps: int, lr: float) -> np.ndarray:
    """θ₀ + λ τ, with τ after ``steps`` of Adam (β = 0.9 and 0.999, ε = 1e-8) from Σ τ_t"""
    task_vectors = [expert - base for expert in experts]
    merged = sum(task_vectors, np.zeros_like(base))
    first, second = np.zeros_like(base), np.zeros_like(base)
    for step in range(1, steps + 1):
        gradient = np.zeros_like(base)
        for vector in task_vectors:
            squares = (vector**2).sum()
            if squares > 0:
                gradient += 2 * (merged - vector) @ vector.T @ vector / squares
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        merged = merged - lr * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return base + scaling * merged
