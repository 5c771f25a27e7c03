"""The simplest points of comparison: the encoder before fine-tuning, the experts themselves, and their mean."""

from __future__ import annotations

from typing import Any

from torch import Tensor


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


def weight_averaging(base: Tensor, deltas: Tensor, options: Any) -> Tensor:
    """(1/T) Σ θ_t = θ₀ + mean of τ_t (paper appendix D.6).

    Args:
        base: θ₀ of one parameter, any shape.
        deltas: τ_t stacked, (T, *base.shape).
    """
    return base + deltas.mean(0)
