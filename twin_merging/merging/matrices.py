"""What the methods on whole matrices share: which parameters they are for, and what of a matrix is only rounding."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from twin_merging.parameters import compiled

GRAM = torch.finfo(torch.float64).eps ** 0.5  # what a Gram matrix in float64 loses of σ₁


def is_matrix(base: Tensor, name: str, patterns: Sequence[str]) -> bool:
    """Whether a parameter is 2-D, not empty, and matched in full by one of ``merge_method.matrices``.

    Raises:
        UserError: if a pattern is no regular expression.
    """
    chosen = any(pattern.fullmatch(name) for pattern in compiled(patterns, "merge_method.matrices"))
    return chosen and base.dim() == 2 and base.numel() > 0


def rounding(base: Tensor, deltas: Tensor, largest: Tensor) -> Tensor:
    """Singular values up to this say nothing of a task: rounding θ_t leaves as much in θ_t − θ₀, or finding them does.

    A matrix of independent errors of size ε·|θ| has singular values up to ε·|θ|·(√m + √n).

    Args:
        base: θ₀, (m, n).
        deltas: (..., m, n).
        largest: σ₁ of each, (...).
    """
    m, n = base.shape
    eps = torch.finfo(deltas.dtype).eps
    size = (base.norm() + deltas.flatten(-2).norm(dim=-1)) / sqrt(m * n)
    return torch.maximum(eps * (sqrt(m) + sqrt(n)) * size, max(GRAM, 10 * eps) * largest)
