"""Fisher merging (Matena & Raffel, 2022)."""

from __future__ import annotations

from torch import Tensor

from twin_merging.config import Fisher
from twin_merging.merging.method import At, static


@static(of="experts", needs="fisher", random=False)
def fisher(base: Tensor, experts: Tensor, options: Fisher, at: At) -> Tensor:
    """Σ F_t θ_t / Σ F_t, entry by entry, F_t no lower than ``floor`` (Matena & Raffel, section 3).

    Args:
        base: θ₀ of one parameter, any shape.
        experts: θ_t stacked, (T, *base.shape).
        options: ``floor`` is the lowest F_t, so that where no expert's answer depends on the entry it is the mean.
        at: ``statistic`` is F_t stacked, (T, *base.shape).
    """
    weights = at.statistic.to(experts.dtype).clamp(min=options.floor)
    return experts.mul_(weights).sum(0) / weights.sum(0)
