"""Methods on whole matrices where every τ_t is a low-rank product: from the factors, so that no dense matrix is made.

With orthonormal Q_B and Q_A that span what the B_t and what the A_tᵀ span, τ_t = B_t A_t = Q_B C_t Q_Aᵀ. TSV-Merge and Iso-C know
no basis: what they make of τ_t is Q_B M Q_Aᵀ, where M is what they make of the small cores C_t, of Σ r_t rows and columns at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from twin_merging.merging.matrices import is_matrix
from twin_merging.merging.tsv import joined, orthonormal

ROUNDING = 10 * torch.finfo(torch.float32).eps
"""Singular values up to this share of the largest say nothing of a task, as in ``matrices.rounding``."""
Factors = tuple[Tensor, Tensor]
"""A (r, n) and B (m, r), float32."""


def merged(name: str, left: Sequence[Tensor], right: Sequence[Tensor], experts: int, method: Any) -> Factors:
    """τ of one parameter in factors, λ included.

    Args:
        name: the parameter's, which says whether it counts as a matrix (``method.matrices``).
        left, right: B_t (m, r_t) and A_t (r_t, n) of the experts that change it.
        experts: how many merge, T: that of the others is 0.
        method: options of ``tsv_merge`` or ``iso_c``.
    """
    shape = len(left[0]), right[0].shape[1]
    if not is_matrix(torch.empty(shape, device="meta"), name, method.matrices):
        return torch.cat(list(right)).float(), torch.cat(list(left), 1).float() * (method.scaling / experts)
    Q_B, cores, Q_A = _cores(left, right)
    B, A = METHODS[method.name](cores, max(1, min(shape) // experts))
    return (Q_A @ A).mT.float(), (method.scaling * Q_B @ B).float()


def tsv(cores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """U⊥ S and V⊥ of the cores (T, p, q), whose k top triplets count each: (p, r) and (q, r)."""
    U, S, V = torch.linalg.svd(cores, full_matrices=False)
    U, S, V = U[..., :k], S[:, :k], V.mT[..., :k]
    real = ROUNDING * S[:, :1] < S
    left, right = (orthonormal(joined(vectors * real.unsqueeze(1))) for vectors in (U, V))
    kept = _one_at_least(real.flatten())
    return (left * (S * real).flatten())[:, kept], right[:, kept]


def iso(cores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """σ̄ U and V of the cores' sum Σ C_t = U S Vᵀ, σ̄ the mean of S: (p, r) and (q, r)."""
    U, S, V = torch.linalg.svd(cores.sum(0), full_matrices=False)
    real = ROUNDING * S[0] < S
    mean, kept = (S * real).sum() / real.sum().clamp_min(1), _one_at_least(real)
    return (mean * U)[:, kept], V.mT[:, kept]


METHODS: dict[str, Callable[[Tensor, int], tuple[Tensor, Tensor]]] = {"tsv_merge": tsv, "iso_c": iso}


def _cores(left: Sequence[Tensor], right: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Q_B (m, p), C_t stacked (T, p, q) and Q_A (n, q), in float64."""
    ranks = [len(A) for A in right]
    Q_B, R_B = torch.linalg.qr(torch.cat([B.double() for B in left], 1))
    Q_A, R_A = torch.linalg.qr(torch.cat([A.double() for A in right]).mT)
    cores = [of_B @ of_A.mT for of_B, of_A in zip(R_B.split(ranks, 1), R_A.split(ranks, 1), strict=True)]
    return Q_B, torch.stack(cores), Q_A


def _one_at_least(kept: Tensor) -> Tensor:
    """An adapter of rank 0 cannot be stored: one of zeros is."""
    return kept if kept.any() else torch.arange(len(kept)) == 0
