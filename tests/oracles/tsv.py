"""TSV-Merge of one matrix by numpy's singular value decomposition, one component at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ZERO = 1e-5  # singular values up to this share of the largest count as zero


def tsv_merge(base: np.ndarray, experts: Sequence[np.ndarray], scaling: float) -> np.ndarray:
    """θ₀ + λ U⊥ S V⊥ᵀ"""
    left, strengths, right = [], [], []
    for expert in experts:
        U, S, Vt = np.linalg.svd(expert - base, full_matrices=False)
        for k in range(max(1, min(base.shape) // len(experts))):
            if S[k] > ZERO * S[0]:
                left.append(U[:, k])
                strengths.append(S[k])
                right.append(Vt[k])
    if not strengths:
        return base.copy()
    return base + scaling * procrustes(np.stack(left, 1)) @ np.diag(strengths) @ procrustes(np.stack(right, 1)).T


def procrustes(columns: np.ndarray) -> np.ndarray:
    """PQᵀ of the columns' decomposition P D Qᵀ, over its non-zero singular values."""
    P, D, Qt = np.linalg.svd(columns, full_matrices=False)
    nearest = np.zeros_like(columns)
    for k, size in enumerate(D):
        if size > ZERO * D[0]:
            nearest += np.outer(P[:, k], Qt[k])
    return nearest
