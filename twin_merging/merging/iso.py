"""Iso-C: isotropic merging in the common subspace (Marczak et al., 2025)."""

from __future__ import annotations

from torch import Tensor

from twin_merging.config import IsoC
from twin_merging.merging.matrices import is_matrix, rounding
from twin_merging.merging.method import At, static
from twin_merging.sparsifiers.svd import decompose


@static(linear=True, random=False)
def iso_c(base: Tensor, deltas: Tensor, options: IsoC, at: At) -> Tensor:
    """θ₀ + λ σ̄ U Vᵀ of a matrix; θ₀ + λ·(1/T) Σ τ_t of any other parameter (Iso-C: Marczak et al. 2025, section 4.1).

    Σ τ_t = U S Vᵀ has rank r, and σ̄ = (1/r) Σ S: the spectrum is made flat and its sum is kept. Singular values that are
    zero but for rounding have no directions of their own, so they do not count and get no share.
    The authors' vision encoders have no token embedding; ``options.matrices`` says whether such a one counts as a matrix.

    Args:
        base: θ₀ of one parameter, any shape.
        deltas: τ_t stacked, (T, *base.shape).
        options: ``scaling`` is λ; ``matrices`` selects by name.
        at: ``name`` is the parameter's.
    """
    total = deltas.sum(0, keepdim=True)
    if not is_matrix(base, at.name, options.matrices):
        return base + options.scaling / len(deltas) * total[0]
    # in float64, as the weakest direction counts as much as the strongest
    U, S, V = (factor[0] for factor in decompose(total.double(), min(base.shape)))
    real = rounding(len(deltas) ** 0.5 * base, total[0], S[0]) < S
    mean = (S * real).sum() / real.sum().clamp_min(1)
    return base + (options.scaling * mean * (U * real) @ V.mT).to(base.dtype)
