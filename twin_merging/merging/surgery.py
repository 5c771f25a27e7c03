"""Representation Surgery (Yang et al., ICML 2024)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from twin_merging.config import Surgery
from twin_merging.progress import progress


def operate(features: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """f − W_up · ReLU(W_down · f) of each row (Yang et al., equation 3).

    Args:
        features: (..., rows, d).
        down: W_down, (..., r, d).
        up: W_up, (..., d, r).
    """
    return features - torch.relu(features @ down.mT) @ up.mT


def learn(
    merged: Sequence[Tensor], experts: Sequence[Tensor], options: Surgery, seed: int
) -> tuple[Tensor, Tensor, list[float]]:
    """Adapters for all tasks that minimize the mean |operate(merged) − expert| by Adam (Yang et al., equation 4).

    Each task's adapter is its own: training them side by side changes none.

    Args:
        merged: the merged encoder's features of each task's rows, (rows, d).
        experts: each task's expert's features of the same rows.
        seed: of the first weights, which are torch's for linear layers, and of the batches.

    Returns:
        W_down (T, r, d), W_up (T, d, r), and the distance at each step, a mean over tasks.
    """
    generator, width = torch.Generator().manual_seed(seed), merged[0].shape[1]
    down = _uniform((len(merged), options.rank, width), width, generator)
    up = _uniform((len(merged), width, options.rank), options.rank, generator)
    rows = [shuffled(len(features), options.batch_size, generator) for features in merged]
    adam, history = torch.optim.Adam([down, up], lr=options.lr), []
    with progress("learn adapters", options.steps, "steps") as bar:
        for _ in range(options.steps):
            chosen = [next(batch) for batch in rows]
            before, wanted = (
                torch.stack([features[batch] for features, batch in zip(side, chosen, strict=True)])
                for side in (merged, experts)
            )
            distances = (operate(before, down, up) - wanted).abs().mean((1, 2))
            adam.zero_grad()
            distances.sum().backward()
            adam.step()
            history.append(distances.mean().item())
            bar.advance()
    return down.detach(), up.detach(), history


def shuffled(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of ``size`` row numbers without end: all rows in one order, then in another."""
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]


def _uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    return torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator).requires_grad_()
