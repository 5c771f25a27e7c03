"""AdaMerging by autograd through the merge itself, and merged one number at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call


def adamerging(base: np.ndarray, experts: Sequence[np.ndarray], coefficients: Sequence[float]) -> np.ndarray:
    """θ₀ + Σ λ_t (θ_t − θ₀)"""
    merged = np.empty(base.shape, np.float64)
    for position in np.ndindex(*base.shape):
        start = float(base[position])
        moves = [c * (float(expert[position]) - start) for c, expert in zip(coefficients, experts, strict=True)]
        merged[position] = start + sum(moves)
    return merged


def elected(deltas: Sequence[Mapping[str, np.ndarray]], density: float) -> list[dict[str, np.ndarray]]:
    """Each whole task vector's largest numbers, ties kept, without those of another sign than the sum of all,
    which where it is 0 takes the sign of most sums."""
    trimmed: list[dict[str, np.ndarray]] = []
    for vector in deltas:
        sizes = sorted((abs(float(x)) for values in vector.values() for x in values.flat), reverse=True)
        limit = sizes[int(density * len(sizes)) - 1]
        trimmed.append({name: np.where(np.abs(values) >= limit, values, 0.0) for name, values in vector.items()})
    signs = {name: np.zeros(values.shape) for name, values in trimmed[0].items()}
    for name, sign in signs.items():
        for position in np.ndindex(*sign.shape):
            sign[position] = np.sign(sum(float(vector[name][position]) for vector in trimmed))
    majority = 1.0 if sum(float(sign.sum()) for sign in signs.values()) >= 0 else -1.0
    for name, sign in signs.items():
        for vector in trimmed:
            for position in np.ndindex(*sign.shape):
                if float(vector[name][position]) * (sign[position] or majority) < 0:
                    vector[name][position] = 0.0
    return trimmed


def entropy(logits: Sequence[float]) -> float:
    """−Σ p log p of the softmax of some logits."""
    powers = [np.exp(float(x) - max(map(float, logits))) for x in logits]
    shares = [power / sum(powers) for power in powers]
    return -sum(share * np.log(share) for share in shares if share > 0)


def learn(
    model: torch.nn.Module, deltas: Mapping[str, Tensor], objective: Callable[[Callable], Tensor], steps: int, lr: float,
    init: float, task_wise: bool, clamp: bool,
) -> tuple[Tensor, list[float]]:  # fmt: skip
    """λ (T, L) after so many steps of Adam on ``objective``, whose graph leads through the merge down to λ.

    Args:
        objective: from a function that calls the model as it is merged at present, the number to minimize.
    """
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    experts = len(next(iter(deltas.values())))
    raw = torch.full((experts, 1 if task_wise else len(deltas)), init, dtype=torch.float64, requires_grad=True)
    adam, history = torch.optim.Adam([raw], lr=lr), []

    def used() -> Tensor:
        return (raw.clamp(0, 1) if clamp else raw).expand(experts, len(deltas))

    for _ in range(steps):
        columns = dict(zip(deltas, used().T, strict=True))
        merged = {
            name: value + sum(columns[name][t] * deltas[name][t] for t in range(experts)) if name in deltas else value
            for name, value in start.items()
        }
        loss = objective(lambda *inputs, merged=merged: functional_call(model, merged, inputs))
        adam.zero_grad()
        loss.backward()
        adam.step()
        history.append(loss.item())
    return used().detach(), history
