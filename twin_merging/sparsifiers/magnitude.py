"""Magnitude pruning of exclusive knowledge (paper figure 6)."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twin_merging.config import Magnitude
from twin_merging.merging.method import At, static
from twin_merging.merging.stack import Stack, in_parallel
from twin_merging.merging.threshold import kth_largest
from twin_merging.sparsifiers.sparse import Sparse, pack
from twin_merging.sparsifiers.storage import room

HALF = 1 << 16  # a float32 magnitude's bits are counted by their upper half, then by their lower


def thresholds(stack: Stack, options: Magnitude, seed: int) -> Mapping[str, Any]:
    """By parameter of two or more dimensions, the magnitude (T, 1) from which on each expert's numbers are kept.

    ``fraction``: that of the ⌊fraction·n⌋-th largest, so that numbers equal to it are kept too. ``budget``: just above
    the largest that does not fit, so that of equal numbers all are kept or none. ``energy``: the largest with which the
    squares of what is kept reach energy·‖v_t‖².
    """
    pruned = Stack(stack.base, stack.experts, [name for name in stack.names if stack.base[name].dim() > 1])
    per_tensor = options.threshold == "per_tensor"
    if options.energy is not None:
        return _for_energy(pruned, options.energy, per_tensor)
    if options.fraction is not None:
        share = options.fraction
        found = kth_largest(pruned, lambda n: [max(1, floor(share * n))], per_tensor=per_tensor)
        return {name: values[0].unsqueeze(1) for name, values in found.items()}
    share = _share_that_fits(stack, pruned, options)
    found = kth_largest(pruned, lambda n: [floor(share * n) + 1], per_tensor=per_tensor)
    return {name: _next_above(values[0]).unsqueeze(1) for name, values in found.items()}


@static(statistic=thresholds, random=False)
def keep_largest(deltas: Tensor, options: Magnitude, at: At) -> Sparse | Tensor:
    """The numbers whose magnitude reaches the threshold; what has fewer than two dimensions is kept whole.

    Args:
        deltas: v_t of one parameter, (T, *shape).
        at: its ``statistic`` is the threshold, (T, 1).
    """
    if deltas.dim() < 3:
        return deltas
    flat = deltas.flatten(1)
    return pack(deltas, (flat.abs().to(at.statistic.dtype) >= at.statistic) & (flat != 0))


def _next_above(magnitude: Tensor) -> Tensor:
    return torch.nextafter(magnitude, torch.full_like(magnitude, torch.inf))


def _share_that_fits(stack: Stack, pruned: Stack, options: Magnitude) -> float:
    """The share of numbers that a budget surely has room for, however they spread over the tensors.

    With K numbers an expert, positions take at most Σ T·⌈N/8⌉ bytes as bitmaps and 4·T·K as indices.
    """
    left = room(stack, options)
    total = sum(pruned.size(name) for name in pruned.names)
    bits = len(stack) * sum((pruned.size(name) + 7) // 8 for name in pruned.names)
    kept = max(left - bits, left // 2) // (4 * len(stack))
    return min(1.0, kept / total) if total else 1.0


def _for_energy(pruned: Stack, share: float, per_tensor: bool) -> dict[str, Tensor]:
    """The thresholds that an energy asks for, exact, from the squares summed by the bits of the magnitudes."""
    groups = [[name] for name in pruned.names] if per_tensor else [pruned.names]
    found: dict[str, Tensor] = {}
    for names in groups:
        upper = _energies(pruned, names, None)
        target = share * upper.sum(1)
        bins, above = _crossed(upper, target)
        lower = _energies(pruned, names, bins)
        rest, _ = _crossed(lower, target - above)
        values = torch.from_numpy((bins * HALF + rest).astype(np.int32).view(np.float32)).unsqueeze(1)
        found |= dict.fromkeys(names, values)
    return found


def _energies(pruned: Stack, names: list[str], bins: np.ndarray | None) -> np.ndarray:
    """(T, HALF): squares summed by the upper half of the magnitude's bits; or by the lower half inside one bin each."""

    def of_turn(name: str, first: int, last: int) -> np.ndarray:
        sums = np.zeros((len(pruned), HALF))
        for _, _, deltas in pruned.pieces(name, first, last):
            for expert, sizes in enumerate(deltas.abs_().float().numpy()):
                bits = sizes.view(np.int32)
                if bins is not None:
                    inside = bits >> 16 == bins[expert]
                    sizes, bits = sizes[inside], bits[inside]
                place = bits >> 16 if bins is None else bits & (HALF - 1)
                sums[expert] += np.bincount(place, sizes.astype(np.float64) ** 2, HALF)
        return sums

    jobs = list(pruned.turns(names))
    total = np.zeros((len(pruned), HALF))
    for _, sums in in_parallel(of_turn, jobs, "thresholds", amount=lambda name, first, last: last - first):
        total += sums
    return total


def _crossed(energies: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest bin down to which the sums reach the target, (T), and what lies above it, (T)."""
    falling = energies[:, ::-1].cumsum(1)
    steps = np.minimum((falling < target[:, None]).sum(1), HALF - 1)
    before = np.where(steps > 0, np.take_along_axis(falling, np.maximum(steps - 1, 0)[:, None], 1)[:, 0], 0.0)
    return HALF - 1 - steps, before
