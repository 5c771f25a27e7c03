"""How many singular triplets each matrix keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from twin_merging.config import Svd


class Matrix(NamedTuple):
    """All experts' singular values of one parameter, S (T, k), and its shape."""

    S: Tensor
    m: int
    n: int

    @property
    def triplet_bytes(self) -> int:
        """What one triplet of every expert takes: T·(m + n + 1) numbers."""
        return len(self.S) * (self.m + self.n + 1) * self.S.element_size()


def needs_whole_spectrum(options: Svd) -> bool:
    """Whether the rank depends on the singular values."""
    return options.budget is not None or options.energy is not None


def fixed_rank(m: int, n: int, options: Svd) -> int:
    """r of an m × n matrix: ``rank``, or ⌊fraction·min(m, n)⌋; at least 1, at most min(m, n)."""
    r = options.rank if options.fraction is None else math.floor(options.fraction * min(m, n))
    assert r is not None
    return min(max(1, r), m, n)


def choose_ranks(matrices: Mapping[str, Matrix], options: Svd, room: int = 0) -> dict[str, int]:
    """r of each matrix, the same for all experts so that their factors stack.

    ``rank`` and ``fraction``: ``fixed_rank``. ``energy``: the smallest r with Σ_{k≤r} S_k² ≥ energy·‖D‖² for every
    expert, at least 1. ``budget``: one triplet after the other goes to the matrix where it adds the most energy a byte,
    all experts together, while there is room; a matrix may get none.

    Args:
        matrices: with all their singular values where the rank depends on them.
        room: bytes for triplets, under a budget.
    """
    if options.budget is not None:
        return _by_worth(matrices, room)
    if options.energy is not None:
        return {name: _for_energy(matrix.S, options.energy) for name, matrix in matrices.items()}
    return {name: fixed_rank(matrix.m, matrix.n, options) for name, matrix in matrices.items()}


def _for_energy(S: Tensor, share: float) -> int:
    energies = S.double().square().cumsum(1)
    if energies.shape[1] == 0:
        return 0
    return int((energies < share * energies[:, -1:]).sum(1).max()) + 1


def _by_worth(matrices: Mapping[str, Matrix], room: int) -> dict[str, int]:
    names = list(matrices)
    worth = {
        name: (matrix.S.double().square().sum(0) / matrix.triplet_bytes).numpy() for name, matrix in matrices.items()
    }
    owners = np.repeat(np.arange(len(names)), [len(worth[name]) for name in names])
    order = np.argsort(-np.concatenate([*worth.values(), np.empty(0)]), kind="stable")
    costs = torch.tensor([matrices[name].triplet_bytes for name in names]).numpy()
    ranks, full = dict.fromkeys(names, 0), np.zeros(len(names), bool)
    for owner in owners[order]:  # a matrix's own triplets come in falling order of worth
        if not full[owner] and costs[owner] <= room:
            room -= int(costs[owner])
            ranks[names[owner]] += 1
        else:
            full[owner] = True
    return ranks
