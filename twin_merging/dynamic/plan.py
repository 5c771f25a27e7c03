"""Which way of applying the examples' own matrices is fastest: counted in floating-point operations and bytes.

All plans compute y_b = (W_s + Σ_t w_t Δ_t) x_b, for B examples of S tokens, W_s of m × n, and factors of rank r:

- ``factored``: W_s for all examples at once, then U (g ⊙ (Vᵀ x)) with all experts' factors side by side.
- ``gathered``: the same with the factors of the k experts that each example has; where k < T.
- ``grouped``: the examples of the same weights have one matrix, W_s + Σ_t w_t Δ_t, which is made first.
- ``dense``: each example's matrix is made, some rows and some examples at a time, and applied at once. Its cost does not
  depend on the rank. Δ_t stays in memory within ``inference.memory``, or is made anew from its factors in each pass.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from twin_merging.dynamic.kernels import block
from twin_merging.dynamic.speeds import Speeds

PLANS = ("factored", "gathered", "grouped", "dense")
PASSES = 64  # of a generated sequence, at least, over which the making of a matrix that is kept is spread


class Case(NamedTuple):
    """One matrix and one batch.

    Args:
        B, S: examples, and tokens of each.
        m, n: the matrix is (m, n).
        T, k: experts, and how many of them an example has at most.
        r: rank of the factors; 0 if Δ_t is not factored.
        resident: Δ_t is in memory, or may be kept there.
        width: bytes of a number.
        distinct: how many different weights the examples have.
        lasting: the weights stay for a whole sequence, and there is room to keep what is made of them.
    """

    B: int
    S: int
    m: int
    n: int
    T: int
    k: int
    r: int
    resident: bool
    width: int = 4
    distinct: int = 0
    lasting: bool = False


def static_cost(case: Case, speeds: Speeds) -> float:
    """Seconds of W_s x for the whole batch: what the static model needs."""
    tokens = case.B * case.S
    moved = case.m * case.n + tokens * (case.m + case.n)
    return 2 * tokens * case.m * case.n / speeds.product + case.width * moved / speeds.bytes


def costs(case: Case, speeds: Speeds) -> dict[str, float]:
    """Seconds of each plan that is possible."""
    B, S, m, n, T, k, r, resident, width, distinct, lasting = case
    tokens, found = B * S, {}
    if r:
        columns = T * r
        found["factored"] = (
            static_cost(case, speeds)
            + 2 * tokens * columns * (m + n) / speeds.thin
            + width * (columns * (m + n) + tokens * (3 * columns + 2 * m)) / speeds.bytes
            + 3 * speeds.call
        )
    if r and k < T:
        columns = k * r
        found["gathered"] = (
            static_cost(case, speeds)
            + 2 * tokens * columns * (m + n) / speeds.thin
            + width * (2 * B * columns * (m + n) + tokens * (3 * columns + 2 * m)) / speeds.bytes
            + 3 * speeds.call
        )
    if distinct:
        made = 2 * k * (r or 1) * m * n / speeds.product + width * (2 + (0 if r else k)) * m * n / speeds.bytes
        apart = distinct > 1  # the examples of each are copied out and their products back
        found["grouped"] = (
            static_cost(case, speeds)
            + distinct * made / (PASSES if lasting else 1)
            + width * ((distinct - 1) * m * n + apart * 2 * tokens * (m + n)) / speeds.bytes
            + 3 * apart * distinct * speeds.call
        )
    rebuilt = 0.0 if resident else 2 * T * m * n * r / speeds.product + width * T * m * n / speeds.made
    found["dense"] = (
        2 * tokens * m * n / speeds.batched
        + 2 * B * T * m * n / speeds.mixed
        + width * (T * m * n + tokens * (n + 3 * m)) / speeds.bytes
        + rebuilt
        + _calls(case, speeds.kernel) * speeds.call
    )
    return found


def _calls(case: Case, kernel: str) -> int:
    """Operations of the dense plan."""
    rows, examples = block(kernel, case.n)
    groups = -(-case.B // examples)
    return -(-case.m // rows) * (2 * groups if kernel == "stock" else groups + case.B)


class Choice(NamedTuple):
    """A plan and what it was expected to cost, in seconds, beside the static model's layer."""

    plan: str
    seconds: float
    static: float


class Explained(NamedTuple):
    """How one layer computed the last batch.

    Args:
        plan: the plan that was taken.
        ratio: its expected time over that of the static model's layer.
    """

    layer: str
    plan: str
    ratio: float


def explanation(layers: Sequence[Explained]) -> str:
    """A line for each layer's name without its numbers, of those that have the same plan."""
    found: dict[tuple[str, str], list[float]] = {}
    for layer, plan, ratio in layers:
        found.setdefault((re.sub(r"\.\d+\.", ".*.", layer), plan), []).append(ratio)
    width = max((len(layer) for layer, _ in found), default=0)
    lines = [
        f"  {layer:<{width}}  {plan:<9} {len(ratios):>3} x  {sum(ratios) / len(ratios):6.2f} of the static layer's time, expected"
        for (layer, plan), ratios in found.items()
    ]
    return "\n".join(lines)


@dataclass
class Planner:
    """Chooses a plan for each matrix, and shares out the memory for dense deltas.

    Args:
        plan: ``auto``, or one of ``PLANS`` where it is possible.
        memory: bytes that dense deltas of factored matrices may take up in all.
        speeds: of this machine; measured when they are first needed.
        kernels: ``auto``, or ``stock`` for torch's own products alone.
    """

    plan: str = "auto"
    memory: int = 0
    speeds: Speeds | None = None
    kernels: str = "auto"
    left: int = field(init=False)
    choices: dict[str, tuple[Case, Choice]] = field(default_factory=dict)
    _known: dict[tuple[Case, str], Choice] = field(default_factory=dict)
    _measured: dict[tuple[str, int], Speeds] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.left = self.memory

    def choose(self, case: Case, layer: str, device: str = "cpu") -> str:
        """The plan of one matrix for this batch, remembered for ``explain`` under the layer's name."""
        choice = self._known.get((case, device))
        if choice is None:
            speeds = self.speeds_of(device, case.width)
            expected = costs(case, speeds)
            wanted = self.plan if self.plan in expected else min(expected, key=lambda plan: expected[plan])
            choice = self._known[case, device] = Choice(wanted, expected[wanted], static_cost(case, speeds))
        self.choices[layer] = case, choice
        return choice.plan

    def speeds_of(self, device: str, width: int) -> Speeds:
        """As given, or this machine's with numbers of ``width`` bytes on a device of that type."""
        if self.speeds is not None:
            return self.speeds
        if (device, width) not in self._measured:
            self._measured[device, width] = Speeds.of(device, width, self.kernels)
        return self._measured[device, width]

    def explained(self) -> list[Explained]:
        """Each matrix's plan for the last batch."""
        return [
            Explained(layer, choice.plan, choice.seconds / choice.static) for layer, (_, choice) in self.choices.items()
        ]

    def keep(self, size: int) -> bool:
        """Whether dense deltas of ``size`` bytes may stay in memory; if so, they are counted."""
        if size > self.left:
            return False
        self.left -= size
        return True
