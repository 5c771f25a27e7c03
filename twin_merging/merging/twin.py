"""Twin-Merging's knowledge modularization (paper section 3.3): what is shared, and what only one expert knows."""

from __future__ import annotations

from torch import Tensor


def exclusive_knowledge(base: Tensor, deltas: Tensor, shared: Tensor) -> Tensor:
    """θ_t − θ_s before compression, stacked (paper equation 2 without the sparsifier).

    Args:
        base: θ₀ of one parameter, any shape.
        deltas: τ_t stacked, (T, *base.shape).
        shared: θ_s, the shape of base.
    """
    return deltas - (shared - base)
