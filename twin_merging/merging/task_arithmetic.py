"""Task Arithmetic (Ilharco et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from twin_merging.config import TaskArithmetic
from twin_merging.merging.averaging import total
from twin_merging.merging.method import static


@static(elementwise=True, of="views", linear=True)
def task_arithmetic(base: Tensor, experts: Sequence[Tensor], options: TaskArithmetic) -> Tensor:
    """θ₀ + λ Σ τ_t = (1 − λT) θ₀ + λ Σ θ_t (paper section 3.1, equation 1).

    Args:
        base: θ₀ of one parameter, any shape.
        experts: each θ_t, the shape of base.
        options: ``scaling`` is λ.
    """
    return total(experts).mul_(options.scaling).add_(base, alpha=1 - options.scaling * len(experts))
