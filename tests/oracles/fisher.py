"""Fisher merging, one example, one label and one number at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def diagonal_fisher(
    model: torch.nn.Module,
    encoder: torch.nn.Module,
    examples: Sequence[Mapping[str, Tensor]],
    chosen: Sequence[int] | None,
) -> dict[str, np.ndarray]:
    """(1/N) Σ_x Σ_y p(y|x) (∂ log p(y|x) / ∂θ)² by autograd; with ``chosen`` labels, only those, with p = 1."""
    model.eval().requires_grad_(True)
    totals = {name: torch.zeros_like(parameter) for name, parameter in encoder.named_parameters()}
    for number, example in enumerate(examples):
        for label in range(model.config.num_labels):
            model.zero_grad()
            log_p = model(**example).logits[0].log_softmax(-1)
            log_p[label].backward()
            weight = log_p[label].exp().item() if chosen is None else float(chosen[number] == label)
            _add(totals, encoder, weight)
    return {name: (total / len(examples)).numpy() for name, total in totals.items()}


def gaussian_fisher(
    model: torch.nn.Module,
    encoder: torch.nn.Module,
    examples: Sequence[Mapping[str, Tensor]],
    truth: Sequence[float] | None,
) -> dict[str, np.ndarray]:
    """(1/N) Σ_x (∂ log N(y; f(x), 1) / ∂θ)²: at the true y, or without it on average over y, where E (y − f)² = 1."""
    model.eval().requires_grad_(True)
    totals = {name: torch.zeros_like(parameter) for name, parameter in encoder.named_parameters()}
    for number, example in enumerate(examples):
        model.zero_grad()
        answer = model(**example).logits[0, 0]
        answer.backward()
        weight = 1.0 if truth is None else (truth[number] - answer.item()) ** 2
        _add(totals, encoder, weight)
    return {name: (total / len(examples)).numpy() for name, total in totals.items()}


def fisher(experts: Sequence[np.ndarray], fishers: Sequence[np.ndarray], floor: float) -> np.ndarray:
    """Σ F_t θ_t / Σ F_t with F_t ≥ floor."""
    merged = np.empty(experts[0].shape, np.float64)
    for position in np.ndindex(*merged.shape):
        weights = [max(float(f[position]), floor) for f in fishers]
        products = [weight * float(expert[position]) for weight, expert in zip(weights, experts, strict=True)]
        merged[position] = sum(products) / sum(weights)
    return merged


def _add(totals: dict[str, Tensor], encoder: torch.nn.Module, weight: float) -> None:
    for name, parameter in encoder.named_parameters():
        if parameter.grad is not None:
            totals[name] += weight * parameter.grad**2
