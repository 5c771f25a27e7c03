"""Task Arithmetic (Ilharco et al., 2023)."""

from __future__ import annotations

from torch import Tensor

from twin_merging.config import TaskArithmetic


def task_arithmetic(base: Tensor, deltas: Tensor, options: TaskArithmetic) -> Tensor:
    """θ₀ + λ Σ τ_t (paper section 3.1, equation 1).

    Args:
        base: θ₀ of one parameter, any shape.
        deltas: τ_t stacked, (T, *base.shape).
        options: ``scaling`` is λ.
    """
    return base + options.scaling * deltas.sum(0)
