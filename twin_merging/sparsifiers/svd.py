"""Truncated singular value decomposition of exclusive knowledge (paper section 3.3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from twin_merging.config import Svd
from twin_merging.merging.method import At, static
from twin_merging.sparsifiers.ranks import Matrix, choose_ranks, fixed_rank, needs_whole_spectrum
from twin_merging.sparsifiers.spectrum import spectrum

NOWHERE = At()


class Factors(NamedTuple):
    """Σ_k S_k U_k V_kᵀ for each of T tasks: U (T, m, r), S (T, r), V (T, n, r). Never multiplied out."""

    U: Tensor
    S: Tensor
    V: Tensor


@static(needs="spectra", random=False)
def truncate(deltas: Tensor, options: Svd, at: At = NOWHERE) -> Factors | Tensor:
    """The best rank-r approximation of each task's matrix (Eckart-Young); what is not 2-D is kept whole.

    Args:
        deltas: exclusive knowledge of one parameter, (T, *shape).
        options: say r, see ``choose_ranks``. A budget is this parameter's alone if it has to be decomposed here.
        at: its ``statistic`` is V (T, min(m, n), r) where it was found before; else the matrices are decomposed here.
    """
    if deltas.dim() != 3:
        return deltas
    if at.statistic is not None:
        return factors(deltas, at.statistic)
    _, m, n = deltas.shape
    cap = None if needs_whole_spectrum(options) else fixed_rank(m, n, options)
    found = [spectrum(delta, cap, options.solver) for delta in deltas]
    S, V = torch.stack([each.S for each in found]), torch.stack([each.V for each in found])
    r = choose_ranks({at.name: Matrix(S, m, n)}, options, options.budget or 0)[at.name]
    return factors(deltas, V[..., :r])


def decompose(matrices: Tensor, r: int, solver: str = "exact") -> Factors:
    """The top r singular triplets of each matrix of (T, m, n); ``solver`` as in ``spectrum``."""
    return factors(matrices, torch.stack([spectrum(matrix, r, solver).V for matrix in matrices]))


def factors(matrices: Tensor, V: Tensor) -> Factors:
    """U and S that belong to singular vectors of the shorter side: U S = D V, one product whatever the rank.

    Args:
        matrices: D, (T, m, n).
        V: (T, min(m, n), r).
    """
    if matrices.shape[1] < matrices.shape[2]:
        V_, S, U = factors(matrices.mT, V)
        return Factors(U, S, V_)
    US = matrices @ V
    S = torch.linalg.vector_norm(US, dim=1, dtype=torch.float64).to(US.dtype)  # squares of 1e-30 vanish in float32
    return Factors(US / S.clamp_min(torch.finfo(S.dtype).tiny).unsqueeze(1), S, V)
