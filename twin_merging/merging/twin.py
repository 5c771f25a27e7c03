"""Twin-Merging's knowledge modularization (paper section 3.3): what is shared, and what only one expert knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from twin_merging.merging.stack import Stack


def exclusive_knowledge(
    shared: Mapping[str, Tensor], experts: Sequence[Mapping[str, Tensor]], names: Iterable[str]
) -> Stack:
    """v_t = θ_t − θ_s before compression (paper equation 2 without the sparsifier): what this stack reads as deltas.

    Args:
        shared: θ_s by name.
        experts: θ_t by name, each.
        names: the parameters that merge.
    """
    return Stack(shared, experts, names)
