"""The simplest points of comparison: the encoder before fine-tuning, the experts themselves, and their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from twin_merging.merging.method import static


@static(elementwise=True)
def pretrained(base: Tensor, deltas: Tensor, options: Any) -> Tensor:
    """θ₀, whatever the experts.

    Args:
        base: θ₀ of one parameter, any shape.
        deltas: τ_t stacked, (T, *base.shape).
    """
    return base


def finetuned(base: Tensor, deltas: Tensor, options: Any) -> Tensor:
    """θ_t = θ₀ + τ_t for every task, stacked: (T, *base.shape). Not one model, hence no shared expert."""
    return base + deltas


@static(elementwise=True, of="views")
def weight_averaging(base: Tensor, experts: Sequence[Tensor], options: Any) -> Tensor:
    """(1/T) Σ θ_t (paper appendix D.6).

    Args:
        base: θ₀ of one parameter, any shape.
        experts: each θ_t, the shape of base.
    """
    return total(experts).div_(len(experts))


def total(tensors: Sequence[Tensor]) -> Tensor:
    """Their sum, one after the other: stacking them first would be another pass over memory."""
    if len(tensors) == 1:
        return tensors[0].clone()
    summed = torch.add(tensors[0], tensors[1])
    for tensor in tensors[2:]:
        summed.add_(tensor)
    return summed
