"""DARE (Yu et al., ICML 2024): drop most of each task vector at random, rescale the rest, then merge as usual."""

from __future__ import annotations

import hashlib

import numpy as np
from torch import Tensor

from twin_merging.config import DareTaskArithmetic, DareTies
from twin_merging.merging.method import At, static
from twin_merging.merging.stack import Stack
from twin_merging.merging.ties import Vote, disjoint_merge, elect, trim, vote

LEVELS = 1 << 16  # a draw is one of so many
STEP = 1 << 14  # numbers of each expert drawn for at a time: larger arrays cost more to allocate than to fill
CHUNK = 1 << 10  # numbers of one expert whose draws lie side by side in the stream


def draws(name: str, experts: int, start: int, count: int, seed: int) -> np.ndarray:
    """Independent uniform integers below ``LEVELS``, (experts, count) uint16, for a parameter's numbers from ``start`` on.

    They are found by position in a stream of the parameter's own, whatever pieces it is read in and by which thread.
    """
    key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    stream = np.random.PCG64(int.from_bytes(key, "little"))
    first, last = start // CHUNK, -(-(start + count) // CHUNK)
    words = CHUNK * experts // 4  # of 64 bits, each of four draws
    stream.advance(first * words)
    drawn = stream.random_raw((last - first) * words).view(np.uint16).reshape(last - first, experts, CHUNK)
    whole = drawn.transpose(1, 0, 2).reshape(experts, -1)
    return whole[:, start - first * CHUNK :][:, :count]


def drop(deltas: Tensor, drop_rate: float, name: str, start: int, seed: int) -> None:
    """Set each number of τ_t to 0 with probability p, to the nearest of ``LEVELS``; in place.

    Args:
        deltas: τ_t stacked, (T, ...); its numbers are those of parameter ``name`` from ``start`` on, in order.
    """
    flat = deltas.flatten(1).numpy() if deltas.dim() > 1 else deltas[:, None].numpy()
    for first in range(0, flat.shape[1], STEP):
        part = flat[:, first : first + STEP]
        drawn = draws(name, len(part), start + first, part.shape[1], seed)
        np.multiply(part, drawn >= round(drop_rate * LEVELS), out=part)


def kept_share(drop_rate: float) -> float:
    """The probability with which a number is really kept: 1 − p in steps of 1 / LEVELS."""
    return 1 - round(drop_rate * LEVELS) / LEVELS


def scaling_of(options: DareTaskArithmetic | DareTies) -> float:
    """λ, over the share kept where numbers are rescaled: merging is linear in the task vectors' common scale."""
    return options.scaling / kept_share(options.drop_rate) if options.rescale else options.scaling


def vote_after_drop(stack: Stack, options: DareTies, seed: int) -> dict[str, Vote]:
    """TIES's thresholds and majority sign, of task vectors with the same numbers dropped."""
    return vote(stack, options, seed, lambda name, start, deltas: drop(deltas, options.drop_rate, name, start, seed))


@static(elementwise=True, random=True, linear=True)
def dare_task_arithmetic(base: Tensor, deltas: Tensor, options: DareTaskArithmetic, at: At) -> Tensor:
    """θ₀ + λ Σ m_t ⊙ τ_t / (1 − p), m_t ~ Bernoulli(1 − p) of each number by itself.

    The defaults are p = 0.7 and λ = 0.7 on the sum of all tasks, which is how the paper's appendix D.6 (70 % sparsified;
    a coefficient of 0.7) and the authors' code read. Source: Yu et al., section 3.1.

    Args:
        base: θ₀ of one parameter, any shape.
        deltas: τ_t stacked, (T, *base.shape); overwritten.
        options: ``drop_rate`` is p, ``scaling`` λ; without ``rescale`` nothing is divided by 1 − p.
        at: the parameter's name, the position of its first number, and the seed.
    """
    drop(deltas, options.drop_rate, at.name, at.start, at.seed)
    return deltas.sum(0).mul_(scaling_of(options)).add_(base)


@static(elementwise=True, random=True, linear=True, statistic=vote_after_drop)
def dare_ties(base: Tensor, deltas: Tensor, options: DareTies, at: At) -> Tensor:
    """TIES of m_t ⊙ τ_t / (1 − p): drop, rescale, then trim, elect and merge what is left.

    ``density`` is a share of all numbers, so that 0.2 after p = 0.7 trims a third of those left: the paper has TIES with
    its own trimming follow (appendix D.6), as DARE's code does. PEFT and mergekit do not trim after dropping, which is
    ``density: 1.0``.

    Args:
        base: θ₀ of one parameter, any shape.
        deltas: τ_t stacked, (T, *base.shape); overwritten.
        options: those of ``dare_task_arithmetic`` and ``ties``.
        at: the parameter's name, the position of its first number, the seed, and the parameter's ``Vote``.
    """
    drop(deltas, options.drop_rate, at.name, at.start, at.seed)
    trimmed = trim(deltas, at.statistic.thresholds)
    sign = elect(trimmed, at.statistic.zero_sign)
    return disjoint_merge(trimmed, sign, options.reduction).mul_(scaling_of(options)).add_(base)
