"""TIES-Merging (Yadav et al., NeurIPS 2023): trim, elect sign, disjoint merge."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from twin_merging.config import Ties
from twin_merging.merging.method import At, static
from twin_merging.merging.stack import Stack, in_parallel
from twin_merging.merging.threshold import Change, kth_largest


class Vote(NamedTuple):
    """What has to be known of the whole task vectors before one number of them is merged.

    Args:
        thresholds: (T,): the magnitude from which on each expert's numbers are kept.
        zero_sign: gives 1, −1 or 0: the sign elected where numbers that are kept sum to zero.
    """

    thresholds: Tensor
    zero_sign: Callable[[], float]


def vote(stack: Stack, options: Ties, seed: int, change: Change | None = None) -> dict[str, Vote]:
    """The thresholds of a ``density``, and the sign that zeros take; by parameter.

    The majority is counted, in another reading, when a sum of zero asks for it, which in float32 hardly happens.

    Args:
        options: ``density``, ``threshold`` and ``zero_sign``.
        change: made in place to the task vectors before.
    """
    thresholds = density_thresholds(stack, options.density, options.threshold == "per_tensor", change)
    fixed = {"positive": 1.0, "drop": 0.0}.get(options.zero_sign)
    zero_sign = _once(lambda: majority_sign(stack, thresholds, change) if fixed is None else fixed)
    return {name: Vote(thresholds[name], zero_sign) for name in stack.names}


def density_thresholds(
    stack: Stack, density: float, per_tensor: bool, change: Change | None = None
) -> dict[str, Tensor]:
    """The ⌊density · n⌋-th largest |τ_t| of each tensor or of the whole vector, (T,), by parameter."""
    if density >= 1:
        return {name: torch.zeros(len(stack)) for name in stack.names}
    found = kth_largest(stack, lambda n: (int(density * n),), per_tensor=per_tensor, change=change)
    return {name: values[0] for name, values in found.items()}


def trim(deltas: Tensor, thresholds: Tensor) -> Tensor:
    """τ_t where |τ_t| is at least expert t's threshold, else 0: numbers equal to it are all kept. In place.

    Args:
        deltas: τ_t stacked, (T, ...); overwritten.
        thresholds: (T,).
    """
    limits = torch.nextafter(thresholds.to(deltas.dtype), torch.tensor(-inf, dtype=deltas.dtype)).tolist()
    for row, limit in zip(deltas, limits, strict=True):  # row by row, since it then needs no other memory
        torch.hardshrink(row, limit, out=row)
    return deltas


def elect(trimmed: Tensor, zero_sign: Callable[[], float]) -> Tensor:
    """sgn(Σ τ_t), (...): of each number the sign with the larger mass; ``zero_sign`` where they are equal; 0 if none is kept.

    Args:
        trimmed: (T, ...).
    """
    sign = trimmed.sum(0).sign_()
    undecided = (sign == 0).logical_and_(trimmed.amax(0) > 0)
    return sign.masked_fill_(undecided, zero_sign()) if undecided.any() else sign


def disjoint_merge(trimmed: Tensor, sign: Tensor, reduction: str) -> Tensor:
    """The mean or sum of those non-zero numbers that have the elected sign, (...); 0 where none has.

    Args:
        trimmed: (T, ...); overwritten.
        sign: (...).
        reduction: ``mean`` or ``sum``.
    """
    agreeing = trimmed.mul_(sign).clamp_(min=0)
    merged = agreeing.sum(0).mul_(sign)
    if reduction == "mean":
        merged.div_(agreeing.sign_().sum(0).clamp_(min=1))
    return merged


def majority_sign(stack: Stack, thresholds: dict[str, Tensor], change: Change | None = None) -> float:
    """sgn(Σ sgn(Σ trimmed)) over all numbers of all parameters; + on a balance."""

    def balance(name: str, first: int, last: int) -> int:
        total = 0
        for start, _, deltas in stack.pieces(name, first, last):
            if change is not None:
                change(name, start, deltas)
            total += int(trim(deltas, thresholds[name]).sum(0).sign_().nan_to_num_().sum(dtype=torch.float64))
        return total

    jobs = in_parallel(
        balance, list(stack.turns(stack.names)), "elect signs", amount=lambda name, first, last: last - first
    )
    return 1.0 if sum(total for _, total in jobs) >= 0 else -1.0


@static(elementwise=True, linear=True, random=False, statistic=vote)
def ties(base: Tensor, deltas: Tensor, options: Ties, at: At) -> Tensor:
    """θ₀ + λ · mean of {τ̂_t : sgn(τ̂_t) = sgn(Σ τ̂_t)}, where τ̂_t is τ_t without its smaller numbers.

    The numbers kept are the ⌊density · n⌋ of largest magnitude of the whole flattened task vector (``threshold: global``,
    as published) or of each tensor (``per_tensor``, as PEFT and mergekit do), and all that equal the smallest of them.
    A sum of zero takes the sign that is elected most often over the whole vector (``zero_sign: majority``, as the authors'
    code does), which matters where experts cancel out exactly, as bfloat16 checkpoints do. Source: Yadav et al.,
    section 4, algorithm 1; paper appendix D.6.

    Args:
        base: θ₀ of one parameter, any shape.
        deltas: τ_t stacked, (T, *base.shape); overwritten.
        options: ``scaling`` is λ; ``reduction`` is mean or sum.
        at: its statistic is the parameter's ``Vote``.
    """
    trimmed = trim(deltas, at.statistic.thresholds)
    sign = elect(trimmed, at.statistic.zero_sign)
    return disjoint_merge(trimmed, sign, options.reduction).mul_(options.scaling).add_(base)


def _once(find: Callable[[], float]) -> Callable[[], float]:
    """``find``, called by the first of several threads that ask."""
    lock = Lock()
    found: list[float] = []

    def known() -> float:
        with lock:
            if not found:
                found.append(find())
            return found[0]

    return known
