"""Task Arithmetic (Ilharco et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from twin_merging.config import TaskArithmetic
from twin_merging.errors import UserError
from twin_merging.merging.averaging import total
from twin_merging.merging.method import static


@static(elementwise=True, of="views", linear=True)
def task_arithmetic(base: Tensor, experts: Sequence[Tensor], options: TaskArithmetic) -> Tensor:
    """θ₀ + λ Σ γ_t τ_t = (1 − λ Σ γ_t) θ₀ + λ Σ γ_t θ_t (paper section 3.1, equation 1); every γ_t is 1 unless given.

    Args:
        base: θ₀ of one parameter, any shape.
        experts: each θ_t, the shape of base.
        options: ``scaling`` is λ, ``gamma`` the γ_t.

    Raises:
        UserError: if there is not one γ_t for each expert.
    """
    if options.gamma is not None:
        if len(options.gamma) != len(experts):
            raise UserError(
                "one γ for each expert", key="merge_method.gamma", found=len(options.gamma), expected=len(experts)
            )
        merged = base * (1 - options.scaling * sum(options.gamma))
        for weight, expert in zip(options.gamma, experts, strict=True):
            merged.add_(expert, alpha=options.scaling * weight)
        return merged
    return total(experts).mul_(options.scaling).add_(base, alpha=1 - options.scaling * len(experts))
