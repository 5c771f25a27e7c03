"""One task's expert as if it were a merged encoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from twin_merging.config import Expert
from twin_merging.errors import UserError
from twin_merging.merging.method import static


@static(elementwise=True, of="views")
def expert(base: Tensor, experts: Sequence[Tensor], options: Expert) -> Tensor:
    """θ_t of one task: what stands in for the shared expert in the ablation without one (paper section 4.3, Table 6).

    Args:
        base: θ₀ of one parameter, any shape.
        experts: each θ_t, the shape of base.
        options: ``index`` is t, from 0.

    Raises:
        UserError: if there are not so many experts.
    """
    if options.index >= len(experts):
        raise UserError(
            "there is no such expert",
            key="merge_method.index",
            found=options.index,
            expected=f"0 to {len(experts) - 1}",
        )
    return experts[options.index]
