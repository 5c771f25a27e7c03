"""The weights w(x) of the batch that is being evaluated, and which experts' knowledge they leave out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor


def truncate(weights: Tensor, top_k: int | None = None, mass: float | None = None) -> Tensor:
    """w(x) with every expert set to 0 that is not among an example's largest; the others stay as they are.

    With w' in place of w the merged weights are off by Σ_t (w_t − w'_t) v_t, whose norm is at most Σ_t |w_t − w'_t| ‖v_t‖.

    Args:
        weights: (B, T).
        top_k: how many experts an example keeps at most.
        mass: it keeps no more than it takes to reach this share of Σ_t w_t.
    """
    if top_k is None and mass is None:
        return weights
    falling, order = weights.sort(-1, descending=True)
    kept = torch.ones_like(weights, dtype=torch.bool)
    if top_k is not None:
        kept[:, top_k:] = False
    if mass is not None:
        kept &= falling.cumsum(-1) - falling < mass * falling.sum(-1, keepdim=True)
    return weights * torch.zeros_like(kept).scatter(-1, order, kept)


class Group(NamedTuple):
    """Examples of the same weights.

    Args:
        rows: their numbers.
        experts, weights: of those that they have, (k) each.
    """

    rows: Tensor
    experts: Tensor
    weights: Tensor


class Pattern(NamedTuple):
    """What a plan has to know about a batch's weights.

    Args:
        kept: how many experts an example has at most.
        distinct: how many different weights there are.
        lasting: whether they stay for many passes, as in text generation.
    """

    kept: int
    distinct: int
    lasting: bool


class Batch:
    """The weights of one batch, and what follows from them.

    Args:
        weights: w'(x), (B, T). Of examples that all have the same, one row is kept.
        lasting: whether they stay for many passes.
    """

    def __init__(self, weights: Tensor, lasting: bool):
        if len(weights) > 1 and bool((weights == weights[0]).all()):
            weights = weights[:1]
        self.weights, self.kept = weights, None
        self.known: dict[object, Any] = {}
        self.held = 0
        rows, experts = weights.shape
        most = int((weights != 0).sum(-1).max()) if rows else 0
        if most < experts:
            own = weights.abs().topk(max(most, 1), -1).indices
            self.kept = own, weights.gather(-1, own)
        distinct, self._number = torch.unique(weights, dim=0, return_inverse=True)
        self.pattern = Pattern(most if self.kept else experts, len(distinct), lasting)

    @cached_property
    def groups(self) -> list[Group]:
        """The examples of each of the distinct weights."""
        all_experts = torch.arange(self.weights.shape[1], device=self.weights.device)
        found = []
        for number in range(self.pattern.distinct):
            rows = (self._number == number).nonzero().flatten()
            kept = (all_experts, self.weights[rows[0]]) if self.kept is None else [part[rows[0]] for part in self.kept]
            found.append(Group(rows, *kept))
        return found

    def part(self, examples: Tensor) -> Batch:
        """Of some examples, by number."""
        return Batch(self.weights[examples], self.pattern.lasting)


class Mixture:
    """What the routed layers of one model share.

    Args:
        top_k, mass: see ``truncate``.

    Attributes:
        dropped: the largest Σ_t |w_t − w'_t| that truncation has left out of an example so far.
    """

    def __init__(self, top_k: int | None = None, mass: float | None = None):
        self.top_k, self.mass, self.dropped = top_k, mass, 0.0
        self.lasting = False
        self.batch: Batch | None = None

    @property
    def weights(self) -> Tensor | None:
        """w'(x), (B, T), or (1, T) where all examples have the same; None evaluates the shared expert alone."""
        return None if self.batch is None else self.batch.weights

    @weights.setter
    def weights(self, weights: Tensor | None) -> None:
        if weights is None:
            self.batch = None
            return
        truncated = truncate(weights, self.top_k, self.mass)
        if truncated is not weights:
            self.dropped = max(self.dropped, float((weights - truncated).abs().sum(-1).max()))
        self.batch = Batch(truncated, self.lasting)

    @property
    def kept(self) -> tuple[Tensor, Tensor] | None:
        """(experts, weights), (B, k) each, where no example has more than k < T experts; None where one has all."""
        return None if self.batch is None else self.batch.kept

    def once(self, key: object, find: Callable[[Tensor], Any], room: int | None = None) -> Any:
        """``find(weights)``, found once for as long as the weights stay: in text generation, for a whole sequence.

        Args:
            key: what it is found for.
            room: bytes that all tensors kept with a limit may take up; one that has no room is found anew.
        """
        batch = self.batch
        assert batch is not None
        known = batch.known.get(key)
        if known is None:
            known = find(batch.weights)
            size = 0 if room is None else known.nbytes
            if room is None or batch.held + size <= room:
                batch.known[key] = known
                batch.held += size
        return known

    @contextmanager
    def of(self, weights: Tensor | None, lasting: bool = False) -> Iterator[None]:
        """Evaluate a batch under its weights, which stay for many passes if they are ``lasting``."""
        before = self.batch, self.lasting
        self.lasting, self.weights = lasting, weights
        try:
            yield
        finally:
            self.batch, self.lasting = before

    @contextmanager
    def only(self, examples: Tensor) -> Iterator[None]:
        """Evaluate some examples of the batch, by number."""
        before = self.batch
        assert before is not None
        self.batch = before.part(examples)
        try:
            yield
        finally:
            self.batch = before
