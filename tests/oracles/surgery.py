"""Representation Surgery, one task and one row at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def operate(features: np.ndarray, down: np.ndarray, up: np.ndarray) -> np.ndarray:
    """f − W_up max(0, W_down f) of each row."""
    found = np.empty_like(features)
    for row, f in enumerate(features):
        hidden = [max(0.0, float(sum(w * x for w, x in zip(weights, f, strict=True)))) for weights in down]
        found[row] = [
            x - sum(w * h for w, h in zip(weights, hidden, strict=True)) for x, weights in zip(f, up, strict=True)
        ]
    return found


def learn(
    merged: Tensor, expert: Tensor, down: Tensor, up: Tensor, batches: Sequence[Sequence[int]], lr: float
) -> tuple[Tensor, Tensor, list[float]]:
    """One task's adapter after a step of Adam on each batch of rows, by torch's own layers and loss."""
    reduce, expand = (torch.nn.Linear(w.shape[1], w.shape[0], bias=False) for w in (down, up))
    reduce.weight.data, expand.weight.data = down.clone(), up.clone()
    adam, history = torch.optim.Adam([reduce.weight, expand.weight], lr=lr), []
    for rows in batches:
        f = merged[list(rows)]
        loss = torch.nn.functional.l1_loss(f - expand(torch.relu(reduce(f))), expert[list(rows)])
        adam.zero_grad()
        loss.backward()
        adam.step()
        history.append(loss.item())
    return reduce.weight.detach(), expand.weight.detach(), history
