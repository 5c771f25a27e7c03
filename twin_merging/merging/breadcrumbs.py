"""Model Breadcrumbs (Davari and Belilovsky, ECCV 2024): drop each tensor's smallest and largest changes."""

from __future__ import annotations

import torch
from torch import Tensor

from twin_merging.config import Breadcrumbs
from twin_merging.merging.method import At, static
from twin_merging.merging.stack import Stack
from twin_merging.merging.threshold import kth_largest
from twin_merging.merging.ties import trim


def limits(stack: Stack, options: Breadcrumbs, seed: int) -> dict[str, Tensor]:
    """By parameter, the largest and the smallest magnitude that each expert keeps, (2, T)."""

    def ranks(n: int) -> tuple[int, int]:
        highest, lowest = int(options.top * n) + 1, n - int(options.bottom * n)
        return highest, lowest if lowest >= highest else 0  # of which the magnitude is infinite: nothing is kept

    return kth_largest(stack, ranks, per_tensor=True)


@static(elementwise=True, linear=True, random=False, statistic=limits)
def breadcrumbs(base: Tensor, deltas: Tensor, options: Breadcrumbs, at: At) -> Tensor:
    """θ₀ + λ Σ m_t ⊙ τ_t, where m_t leaves out each tensor's smallest and largest magnitudes.

    Of n numbers the ⌊bottom · n⌋ smallest and the ⌊top · n⌋ largest are dropped; numbers equal to the last one kept at
    either end are kept too. The two shares are named after what they drop, since β and γ stand for either end in
    different texts: mergekit's ``gamma`` is ``top``, and its ``density`` is 1 − bottom − top. Source: Davari and
    Belilovsky, section 3; the authors' code ranks within each row of a matrix instead of within the layer.

    Args:
        base: θ₀ of one parameter, any shape.
        deltas: τ_t stacked, (T, *base.shape); overwritten.
        options: ``scaling`` is λ.
        at: its statistic is the magnitudes between which numbers are kept, (2, T).
    """
    highest, lowest = at.statistic
    kept = trim(deltas, lowest)
    for row, limit in zip(kept, highest.to(kept.dtype).tolist(), strict=True):
        row.sub_(torch.hardshrink(row, limit))  # exactly 0 where it is larger, else as it was
    return kept.sum(0).mul_(options.scaling).add_(base)
