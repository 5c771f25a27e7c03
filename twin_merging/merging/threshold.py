"""The k-th largest magnitude of every expert's task vector, exactly, in little memory and about one reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import gcd, inf

import numpy as np
import torch
from torch import Tensor

from twin_merging.merging.stack import Stack, in_parallel

SAMPLE = 1 << 17  # numbers of each expert from which a bracket is guessed
DIRECT = 1 << 20  # up to so many numbers an expert are selected from without one
REACH = 6.0  # half a bracket's width, in standard deviations of a sample's rank
HEAVY = 1 / 16  # share of a piece inside a bracket from which on its ends are counted instead of kept

Ranks = Callable[[int], Sequence[int]]
"""n -> the ranks k sought among n numbers."""
Change = Callable[[str, int, Tensor], None]
"""(name, start, τ_t (T, n)): what is done in place to task vectors before they are ranked."""


def kth_largest(stack: Stack, ranks: Ranks, *, per_tensor: bool, change: Change | None = None) -> dict[str, Tensor]:
    """The k-th largest |τ_t|, of each tensor or of all numbers together.

    Among n numbers in descending order it is the k-th; so that at least k of them are as large, and fewer than k are
    larger, however many are equal. It is infinite for k < 1 and −infinite for k > n.

    A sample gives a bracket around each rank. One reading counts what lies above it and keeps what lies inside, about
    1 %, among which the number sought is found by selection; a bracket that missed its rank is widened and read again.

    Args:
        ranks: of n numbers, each k; their number may not depend on n.
        per_tensor: rank within each tensor; otherwise within the whole vector of the stack's parameters.
        change: made to the task vectors before.

    Returns:
        By parameter, (len(ranks), T).
    """
    groups = [[name] for name in stack.names] if per_tensor else [stack.names]
    small = [group for group in groups if _total(stack, group) <= DIRECT]
    found: dict[str, Tensor] = {}

    def directly(names: list[str]) -> np.ndarray:
        sizes = [_magnitudes(*piece, change).copy() for name in names for piece in _named_pieces(stack, name)]
        whole = np.concatenate(sizes, axis=1) if sizes else np.empty((len(stack), 0), np.float32)
        return np.array([[_nth(row, k) for row in whole] for k in ranks(whole.shape[1])])

    jobs = in_parallel(directly, [(group,) for group in small], "thresholds", lambda names: _total(stack, names))
    for (names,), values in jobs:
        found |= dict.fromkeys(names, torch.from_numpy(values))
    for names in groups:
        if _total(stack, names) > DIRECT:
            found |= dict.fromkeys(names, torch.from_numpy(_by_bracket(stack, names, ranks, change)))
    return found


@dataclass
class _Tally:
    """Of one expert: how many numbers are above a bracket, how many equal its ends, and those inside."""

    above: int = 0
    at_high: int = 0
    at_low: int = 0
    inside: list[np.ndarray] = field(default_factory=list)

    def add(self, sizes: np.ndarray, low: float, high: float) -> None:
        """Count and keep (n,) more numbers."""
        above = sizes > high
        self.above += int(np.count_nonzero(above))
        inside = (sizes >= low) ^ above
        number = np.count_nonzero(inside)
        if number > HEAVY * len(sizes):  # many are equal, and what they equal has been sampled
            at_high, at_low = sizes == high, (sizes == low) & (low < high)
            self.at_high += int(np.count_nonzero(at_high))
            self.at_low += int(np.count_nonzero(at_low))
            inside &= ~(at_high | at_low)
        if number:
            self.inside.append(sizes[np.flatnonzero(inside)])

    def join(self, other: _Tally) -> None:
        """Add what another one counted."""
        self.above, self.at_high, self.at_low = (
            self.above + other.above, self.at_high + other.at_high, self.at_low + other.at_low,
        )  # fmt: skip
        self.inside += other.inside

    def pick(self, k: int, low: float, high: float) -> float | None:
        """The k-th largest; None if it is outside the bracket."""
        inside = np.concatenate(self.inside) if self.inside else np.empty(0)
        rank = k - self.above
        if rank < 1 or rank > self.at_high + len(inside) + self.at_low:
            return None
        if rank <= self.at_high:
            return high
        return _nth(inside, rank - self.at_high) if rank <= self.at_high + len(inside) else low


def _by_bracket(stack: Stack, names: list[str], ranks: Ranks, change: Change | None) -> np.ndarray:
    total = _total(stack, names)
    sample = np.sort(_sample(stack, names, change), axis=1)
    sought, drawn = list(ranks(total)), sample.shape[1]
    shares = np.clip(np.array(sought) / total, 0, 1)
    margin = np.repeat((2 + REACH * np.sqrt(drawn * shares * (1 - shares)))[:, None], len(stack), axis=1)
    found = np.array([[_outside(k, total)] * len(stack) for k in sought], sample.dtype)
    missing = np.isnan(found)
    while missing.any():
        centre = drawn * (1 - shares)[:, None]
        low = _ordered(sample, np.floor(centre - margin))
        high = _ordered(sample, np.ceil(centre + margin))
        low[~missing] = high[~missing] = inf
        tallies = _read(stack, names, low, high, change)
        for row, expert in zip(*np.nonzero(missing), strict=True):
            bottom, top = low[row, expert], high[row, expert]
            value = tallies[row][expert].pick(sought[row], bottom, top)
            if value is None and bottom == 0 and top == inf:
                value = 0.0  # NaN among the numbers, which the merge reports
            if value is not None:
                found[row, expert], missing[row, expert] = value, False
        margin *= 16
    return found


def _read(
    stack: Stack, names: list[str], low: np.ndarray, high: np.ndarray, change: Change | None
) -> list[list[_Tally]]:
    """The tally of each rank and expert, whose brackets are low and high, (ranks, T)."""

    def of_turn(name: str, first: int, last: int) -> list[list[_Tally]]:
        tallies = [[_Tally() for _ in stack.experts] for _ in low]
        for piece in _named_pieces(stack, name, first, last):
            sizes = _magnitudes(*piece, change).astype(low.dtype, copy=False)
            for row, bottoms, tops in zip(tallies, low, high, strict=True):
                for tally, *expert in zip(row, sizes, bottoms, tops, strict=True):
                    tally.add(*expert)
        return tallies

    together = [[_Tally() for _ in stack.experts] for _ in low]
    jobs = list(stack.turns(names))
    for _, tallies in in_parallel(of_turn, jobs, "thresholds", amount=lambda name, first, last: last - first):
        for row, more in zip(together, tallies, strict=True):
            for tally, other in zip(row, more, strict=True):
                tally.join(other)
    return together


def _nth(values: np.ndarray, k: int) -> float:
    """The k-th largest of a vector."""
    outside = _outside(k, len(values))
    return np.partition(values, len(values) - k)[len(values) - k] if np.isnan(outside) else outside


def _outside(k: int, n: int) -> float:
    """What a rank that n numbers do not have stands for; NaN if they have it."""
    return inf if k < 1 else -inf if k > n else np.nan


def _ordered(sample: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(ranks, T): the sorted sample (T, m) at ``positions``; 0 before its first number and infinite after its last."""
    inner = np.clip(positions, 0, sample.shape[1] - 1).astype(np.int64)
    values = np.take_along_axis(sample, inner.T, axis=1).T.copy()
    values[positions < 0] = 0
    values[positions >= sample.shape[1]] = inf
    return values


def _sample(stack: Stack, names: list[str], change: Change | None) -> np.ndarray:
    """(T, about SAMPLE): magnitudes at equal distances, which no power of 2 and no small factor divides."""
    step = max(1, _total(stack, names) // SAMPLE)
    while gcd(step, 210) > 1:
        step += 1
    drawn, position = [], 0
    for name in names:
        first = -position % step
        position += stack.size(name)
        if first < stack.size(name):
            base, *experts = (state[name].reshape(-1)[first::step].cpu() for state in (stack.base, *stack.experts))
            wide = torch.promote_types(base.dtype, torch.float32)
            deltas = torch.stack([expert.to(wide) for expert in experts]) - base.to(wide)
            drawn.append(_magnitudes(name, 0, deltas, change))
    return np.concatenate(drawn, axis=1)


def _named_pieces(
    stack: Stack, name: str, first: int = 0, last: int | None = None
) -> Iterator[tuple[str, int, Tensor]]:
    return ((name, start, deltas) for start, _, deltas in stack.pieces(name, first, last))


def _magnitudes(name: str, start: int, deltas: Tensor, change: Change | None) -> np.ndarray:
    if change is not None:
        change(name, start, deltas)
    return deltas.abs_().numpy()


def _total(stack: Stack, names: Sequence[str]) -> int:
    return sum(stack.size(name) for name in names)
