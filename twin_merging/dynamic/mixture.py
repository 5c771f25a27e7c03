"""The weights w(x) of the batch that is being evaluated, and which experts' knowledge they leave out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


class Mixture:
    """What the routed layers of one model share.

    Args:
        top_k, mass: see ``truncate``.

    Attributes:
        dropped: the largest Σ_t |w_t − w'_t| that truncation has left out of an example so far.
    """

    def __init__(self, top_k: int | None = None, mass: float | None = None):
        self.top_k, self.mass, self.dropped = top_k, mass, 0.0
        self._weights: Tensor | None = None
        self._kept: tuple[Tensor, Tensor] | None = None
        self._known: dict[object, Tensor] = {}

    def once(self, key: object, find: Callable[[Tensor], Tensor]) -> Tensor:
        """``find(weights)``, found once for as long as the weights stay: in text generation, for a whole sequence."""
        assert self._weights is not None
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = find(self._weights)
        return known

    @property
    def weights(self) -> Tensor | None:
        """w'(x), (B, T), or (1, T) where all examples have the same; None evaluates the shared expert alone."""
        return self._weights

    @weights.setter
    def weights(self, weights: Tensor | None) -> None:
        self._weights, self._kept, self._known = weights, None, {}
        if weights is None:
            return
        some = truncate(weights, self.top_k, self.mass)
        if some is not weights:
            self.dropped = max(self.dropped, float((weights - some).abs().sum(-1).max()))
        self._take(some)

    def _take(self, weights: Tensor) -> None:
        if len(weights) > 1 and bool((weights == weights[0]).all()):
            weights = weights[:1]
        self._weights, self._kept, self._known = weights, None, {}
        most = int((weights != 0).sum(-1).max()) if len(weights) else 0
        if most < weights.shape[1]:
            experts = weights.abs().topk(max(most, 1), -1).indices
            self._kept = experts, weights.gather(-1, experts)

    @property
    def kept(self) -> tuple[Tensor, Tensor] | None:
        """(experts, weights), (B, k) each, where no example has more than k < T experts; None where one has all."""
        return self._kept

    @contextmanager
    def of(self, weights: Tensor | None) -> Iterator[None]:
        """Evaluate a batch under its weights."""
        before = self._weights, self._kept, self._known
        self.weights = weights
        try:
            yield
        finally:
            self._weights, self._kept, self._known = before

    @contextmanager
    def only(self, examples: Tensor) -> Iterator[None]:
        """Evaluate some examples of the batch, by number."""
        before = self._weights, self._kept, self._known
        assert self._weights is not None
        self._take(self._weights[examples])
        try:
            yield
        finally:
            self._weights, self._kept, self._known = before
