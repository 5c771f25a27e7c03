"""Iso-C of one matrix by numpy's singular value decomposition, one component at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ZERO = 1e-5  # singular values up to this share of the largest count as zero


def iso_c(base: np.ndarray, experts: Sequence[np.ndarray], scaling: float) -> np.ndarray:
    """θ₀ + λ · mean of the singular values of Σ τ_t · U Vᵀ"""
    U, S, Vt = np.linalg.svd(sum(expert - base for expert in experts), full_matrices=False)
    components = [k for k in range(len(S)) if S[k] > ZERO * S[0]]
    merged = base.copy()
    for k in components:
        merged += scaling * sum(S[i] for i in components) / len(components) * np.outer(U[:, k], Vt[k])
    return merged
