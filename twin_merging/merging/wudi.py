"""WUDI-Merging: the vector that disturbs the experts least, without data (Cheng et al., 2025)."""

from __future__ import annotations

import torch
from torch import Tensor

from twin_merging.config import Wudi
from twin_merging.merging.matrices import is_matrix
from twin_merging.merging.method import At, static


@static(linear=True, random=False)
def wudi(base: Tensor, deltas: Tensor, options: Wudi, at: At) -> Tensor:
    """θ₀ + λ τ of a linear layer, with τ from ``steps`` of Adam on the disturbance (Cheng et al. 2025, section 4):

    L(τ) = Σ_t ‖(τ − τ_t) τ_tᵀ‖² / ‖τ_t‖²,  from τ = Σ τ_t on.

    L is quadratic, with gradient 2 Σ (τ − τ_t) G_t for G_t = τ_tᵀτ_t/‖τ_t‖². So only Σ G_t and the gradient at Σ τ_t are
    needed, both made once: a step costs one product, m n², whatever T is. An expert that equals θ₀ has no share in L.

    Args:
        base: θ₀ of one parameter, any shape.
        deltas: τ_t stacked, (T, *base.shape).
        options: ``scaling`` is λ; ``steps`` and ``lr`` are Adam's; ``matrices`` says by name what is a linear layer;
            ``rest`` is what other parameters become: θ₀ as in the authors' code, or θ₀ + λ·(1/T) Σ τ_t.
        at: ``name`` is the parameter's.
    """
    if is_matrix(base, at.name, options.matrices):
        return base + options.scaling * least_disturbing(deltas, options.steps, options.lr)
    return base if options.rest == "pretrained" else base + options.scaling / len(deltas) * deltas.sum(0)


def least_disturbing(deltas: Tensor, steps: int, lr: float) -> Tensor:
    """τ after ``steps`` of Adam on L, from Σ τ_t. deltas is τ_t stacked, (T, m, n); the result is (m, n)."""
    total = deltas.sum(0)
    norms = deltas.flatten(1).norm(dim=1)
    units = deltas / torch.where(norms > 0, norms, 1).view(-1, 1, 1)
    left, right = curvature(units.flatten(0, 1))
    start = 2 * _gradient(total - deltas, units)
    # what is added to Σ τ_t is optimized, so that its rounding is no larger than itself
    added = torch.nn.Parameter(torch.zeros_like(total))
    adam = torch.optim.Adam([added], lr=lr, fused=True)
    added.grad = torch.empty_like(total)
    for _ in range(steps):
        torch.addmm(start, added.detach() @ left if left is not None else added.detach(), right, out=added.grad)
        adam.step()
    return total + added.detach()


def curvature(joined: Tensor) -> tuple[Tensor | None, Tensor]:
    """2 Σ u_tᵀu_t of u_t one below the other, (T m, n), as left (n, k) @ right (k, n) where its rank k is small.

    Experts learned as adapters have few directions: there a step costs 2 m n k in place of m n². The directions are those of
    random products (Halko et al. 2011); left is None, and right the matrix itself, where these leave more than rounding.
    """
    whole = 2 * joined.double().mT @ joined.double()
    n, eps = len(whole), torch.finfo(joined.dtype).eps
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(n, n // 4, generator=generator, dtype=torch.float64).to(whole.device)
    directions = torch.linalg.qr(whole @ probes).Q
    rows = directions.mT @ whole
    if not (whole - directions @ rows).norm() <= 10 * eps * whole.norm():
        return None, whole.to(joined.dtype)
    u, values, v = torch.linalg.svd(rows, full_matrices=False)
    kept = int((values > eps * values[:1]).sum())
    left, right = directions @ u[:, :kept], values[:kept, None] * v[:kept]
    return left.to(joined.dtype), right.to(joined.dtype)


def _gradient(others: Tensor, units: Tensor) -> Tensor:
    """Σ_t others_t u_tᵀ u_t of (T, m, n) each, by the smaller of the two Gram matrices."""
    if units.shape[1] <= units.shape[2]:
        left = torch.bmm(others, units.mT)
        return left.transpose(0, 1).flatten(1) @ units.flatten(0, 1)
    right = torch.bmm(units.mT, units)
    return others.transpose(0, 1).flatten(1) @ right.flatten(0, 1)
