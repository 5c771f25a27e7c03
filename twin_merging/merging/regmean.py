"""RegMean (Jin et al., 2023)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from twin_merging.config import RegMean
from twin_merging.merging.method import At, static

SINGULAR = 1e-6
"""Squared pivots of ΣG with its diagonal scaled to 1, and its eigenvalues relative to the largest, that count as 0."""


class Turned(NamedTuple):
    """G_t of a parameter P that is applied as x · P, so that its rows, and not its columns, are the inputs: (T, in, in)."""

    grams: Tensor


@static(of="experts", needs="gram", random=False)
def regmean(base: Tensor, experts: Tensor, options: RegMean, at: At) -> Tensor:
    """W = Σ W_t G_t (Σ G_t)⁻¹ for a linear layer (Jin et al., section 3, with the weights transposed as torch has them).

    It is the matrix whose outputs are nearest to every expert's on that expert's own inputs. G_t's entries off the
    diagonal are multiplied by ``off_diagonal`` before. All other parameters are averaged, and so is W in directions that
    no input has: what is solved for is W's distance from the mean.

    Args:
        base: θ₀ of one parameter.
        experts: θ_t stacked, (T, *base.shape); (T, out, in) for a linear layer's weight.
        options: ``off_diagonal`` is Jin et al.'s α.
        at: ``statistic`` is G_t = XᵀX of the layer's inputs stacked, (T, in, in), ``Turned`` for a parameter of (in, out); None
            for other parameters.
    """
    if isinstance(at.statistic, Turned):
        return regmean(base.mT, experts.mT, options, at._replace(statistic=at.statistic.grams)).mT
    mean = experts.sum(0) / len(experts)
    if at.statistic is None:
        return mean
    grams, distances = at.statistic.to(experts.dtype), experts.sub_(mean)
    diagonals, alpha = grams.diagonal(dim1=-2, dim2=-1), options.off_diagonal
    pulls = alpha * torch.einsum("toi,tij->oj", distances, grams)
    pulls += (1 - alpha) * torch.einsum("toi,ti->oi", distances, diagonals)
    total = alpha * grams.sum(0, dtype=torch.float64)
    total.diagonal().add_(diagonals.sum(0, dtype=torch.float64), alpha=1 - alpha)
    return mean + solve(total, pulls.double()).to(mean.dtype)


def solve(gram: Tensor, pulls: Tensor) -> Tensor:
    """X with X·gram = pulls (m, n), for a positive semi-definite gram (n, n) whose row space pulls' rows are in.

    Once its diagonal is scaled to 1, no eigenvalue of the matrix is below 1 − ``off_diagonal``, so that Cholesky's method
    is safe. Inputs that are always 0 are left out. What is still singular, as it may be at ``off_diagonal`` = 1, is
    solved by the pseudo-inverse, which gives the X of least norm.
    """
    scale = gram.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(scale > 0, 1 / scale, 0)
    scaled = gram * inverse * inverse.unsqueeze(1)
    scaled.diagonal().masked_fill_(scale == 0, 1)
    factor, failed = torch.linalg.cholesky_ex(scaled)
    if failed or (factor.diagonal().square() < SINGULAR).any():
        return pulls @ torch.linalg.pinv(gram, rtol=SINGULAR, hermitian=True)
    return torch.cholesky_solve((pulls * inverse).T, factor).T * inverse
