"""TSV-Merge: task singular vectors, decorrelated (Gargiulo et al., 2025)."""

from __future__ import annotations

import torch
from torch import Tensor

from twin_merging.config import TsvMerge
from twin_merging.merging.matrices import is_matrix, rounding
from twin_merging.merging.method import At, static
from twin_merging.sparsifiers.svd import decompose

DEPENDENT = 1e-6  # singular values of the joined vectors, in units of the largest, below which they are dependent


@static(linear=True, random=False)
def tsv_merge(base: Tensor, deltas: Tensor, options: TsvMerge, at: At) -> Tensor:
    """θ₀ + λ U⊥ S V⊥ᵀ of a matrix; θ₀ + λ·(1/T) Σ τ_t of any other parameter (TSV-M: Gargiulo et al. 2025, section 4).

    U = [U_1 .. U_T] and V join the top k = ⌊min(m, n)/T⌋ (at least 1) singular vectors of every τ_t, S their singular
    values. U⊥ and V⊥ have the nearest orthonormal columns to U and V (Procrustes).

    Singular values that are zero but for rounding have no vectors of their own, so they are left out, as they have to be
    for experts of a rank below k (LoRA); and where joined vectors depend on one another, U⊥ spans what they span.
    The authors' vision encoders have no token embedding; ``options.matrices`` says whether such a one counts as a matrix.

    Args:
        base: θ₀ of one parameter, any shape.
        deltas: τ_t stacked, (T, *base.shape).
        options: ``scaling`` is λ; ``matrices`` selects by name.
        at: ``name`` is the parameter's.
    """
    if not is_matrix(base, at.name, options.matrices):
        return base + options.scaling / len(deltas) * deltas.sum(0)
    U, S, V = decompose(deltas, max(1, min(base.shape) // len(deltas)))
    S = S * (rounding(base, deltas, S[:, 0]).unsqueeze(1) < S)
    left, right = (orthonormal(joined(vectors * (S > 0).unsqueeze(1)).double()) for vectors in (U, V))
    return base + options.scaling * ((left * S.flatten().double()) @ right.mT).to(base.dtype)


def joined(vectors: Tensor) -> Tensor:
    """(T, m, k) as (m, Tk)."""
    return vectors.transpose(0, 1).flatten(1)


def orthonormal(columns: Tensor) -> Tensor:
    """U (UᵀU)^(-1/2), pseudo-inverted: PQᵀ of U = P D Qᵀ over its non-zero singular values."""
    squares, Q = torch.linalg.eigh(columns.mT @ columns)
    independent = squares > DEPENDENT**2 * squares[-1]
    return columns @ (Q * torch.where(independent, squares.rsqrt(), 0)) @ Q.mT
