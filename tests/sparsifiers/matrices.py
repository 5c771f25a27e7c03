"""Matrices with spectra that a decomposition may stumble over."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian(m: int, n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """The flattest spectrum that noise has."""
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def with_spectrum(m: int, n: int, S: Tensor, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """A matrix with these min(m, n) singular values and random singular vectors."""
    k = min(m, n)
    U = torch.linalg.qr(gaussian(m, k, seed, torch.float64))[0]
    V = torch.linalg.qr(gaussian(n, k, seed + 1, torch.float64))[0]
    return ((U * S.double()) @ V.mT).to(dtype)


def spectra(k: int) -> dict[str, Tensor]:
    """Singular values by what is hard about them."""
    index = torch.arange(k, dtype=torch.float64)
    return {
        "all equal": torch.ones(k),
        "slow decay": (index + 1) ** -0.5,
        "harmonic": 1 / (index + 1),
        "exponential": 0.9**index,
        "steep": 0.5**index,
        "a few and noise": torch.cat([torch.ones(20), torch.full((k - 20,), 1e-3)]),
        "one and the rest": torch.cat([torch.full((1,), 100.0), torch.ones(k - 1)]),
        "rank 20": torch.cat([torch.ones(20), torch.zeros(k - 20)]),
        "rank 1": torch.cat([torch.ones(1), torch.zeros(k - 1)]),
    }
