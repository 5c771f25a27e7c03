"""Matrices on which methods that decompose them could go wrong."""

from __future__ import annotations

import numpy as np
import torch

SHAPES = [(6, 6), (4, 9), (9, 4), (1, 5), (5, 1), (1, 1), (24, 10), (10, 24)]


def random_case(shape: tuple[int, ...], tasks: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """θ₀ and τ_t stacked, in float64."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator, dtype=torch.float64)
    return base, torch.randn(tasks, *shape, generator=generator, dtype=torch.float64)


def awkward_cases() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By name: θ₀ and τ_t stacked, in float64."""
    base, deltas = random_case((8, 6), 3, seed=1)
    _, low = random_case((8, 2), 3, seed=2)
    _, high = random_case((2, 6), 3, seed=3)
    return {
        "zero base": (torch.zeros(8, 6, dtype=torch.float64), deltas),
        "one task is zero": (base, deltas * torch.tensor([1.0, 0, 1]).view(3, 1, 1)),
        "all tasks are zero": (base, torch.zeros_like(deltas)),
        "rank 2 each": (base, low @ high),
        "rank 1 each": (base, low[..., :1] @ high[:, :1]),
        "rank 1 and full rank": (base, torch.stack([low[0, :, :1] @ high[0, :1], deltas[1], deltas[2]])),
        "equal experts": (base, deltas[:1].repeat(3, 1, 1)),
        "opposite experts": (base, torch.stack([deltas[0], -deltas[0]])),
        "a row and a column of zeros": (base, deltas * torch.ones(8, 6).index_fill(0, torch.tensor([2]), 0)),
        "tiny": (1e-8 * base, 1e-8 * deltas),
        "more tasks than rows": (base[:2], random_case((2, 6), 5, seed=4)[1]),
    }


def as_numpy(base: torch.Tensor, deltas: torch.Tensor) -> tuple[np.ndarray, list[np.ndarray]]:
    """θ₀ and each θ_t, for an oracle."""
    return base.double().numpy(), [(base.double() + delta.double()).numpy() for delta in deltas]
