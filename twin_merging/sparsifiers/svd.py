"""Truncated singular value decomposition of exclusive knowledge (paper section 3.3)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from twin_merging.config import Svd


class Factors(NamedTuple):
    """Σ_k S_k U_k V_kᵀ for each of T tasks: U (T, m, r), S (T, r), V (T, n, r). Never multiplied out."""

    U: Tensor
    S: Tensor
    V: Tensor


def truncate(deltas: Tensor, options: Svd) -> Factors | Tensor:
    """The best rank-r approximation of each task's matrix (Eckart-Young); what is not 2-D is kept whole.

    Args:
        deltas: exclusive knowledge of one parameter, (T, *shape).
        options: ``rank``, ``fraction`` or ``budget`` give r; at most min(m, n) is used.
    """
    if deltas.dim() != 3:
        return deltas
    r = rank_for(deltas.shape[1], deltas.shape[2], options)
    return decompose(deltas, r)


def rank_for(m: int, n: int, options: Svd) -> int:
    """r of an m × n matrix: ``rank``; ⌊fraction·min(m, n)⌋; or the most that ⌊budget·m·n⌋ numbers hold at m + n + 1 each.

    At least 1, at most min(m, n).
    """
    if options.fraction is not None:
        r = math.floor(options.fraction * min(m, n))
    elif options.budget is not None:
        r = math.floor(options.budget * m * n / (m + n + 1))
    else:
        assert options.rank is not None
        r = options.rank
    return max(1, min(r, m, n))


def decompose(matrices: Tensor, r: int) -> Factors:
    """The top r singular triplets of each matrix of (T, m, n), by the eigen-decomposition of the smaller Gram matrix.

    In float64, so that what the squaring of the singular values loses (1e-16·σ₁², that is 1e-8·σ₁) lies below
    float32's own rounding; unlike the divide-and-conquer SVD it converges on rank-deficient matrices.
    """
    if matrices.shape[1] < matrices.shape[2]:
        U, S, V = decompose(matrices.mT, r)
        return Factors(V, S, U)
    wide = matrices.double()
    _, vectors = torch.linalg.eigh(wide.mT @ wide)
    V = vectors[..., -r:].flip(-1)
    US = wide @ V
    S = US.norm(dim=1)
    U = US / S.clamp_min(torch.finfo(torch.float64).tiny).unsqueeze(1)
    return Factors(U.to(matrices.dtype), S.to(matrices.dtype), V.to(matrices.dtype))
