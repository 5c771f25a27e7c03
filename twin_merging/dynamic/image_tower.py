"""What image encoders have of their own: class tokens, positions, and the projection of open_clip's tower."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from twin_merging.dynamic.plan import Planner
from twin_merging.dynamic.routed import Routed, instead_of, mixed_by, weights_of

IMAGE_TOWER = ("class_embedding", "positional_embedding", "proj")


class RoutedImageTower(Routed):
    """A tower of which every example has class token, positions and projection of its own.

    The class token is where the first position is added, so that what the experts know of both is one sum, and the tower's
    own code runs with positions of (B, tokens, d). It runs without its projection, which is applied to what it gives.
    """

    factored = ("proj",)

    def prepare(self, planner: Planner, deltas: dict[str, Any]) -> None:
        projection = deltas.pop("proj", None)
        super().prepare(planner, deltas)
        self.projection = None
        if projection is not None:  # which is stored as (d, output)
            turned = (
                projection.mT
                if isinstance(projection, Tensor)
                else type(projection)(projection.V, projection.S, projection.U)
            )
            self.projection = self.matrix(planner, turned, None, "proj")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.mixture.weights is None:
            return self.shared(*args, **kwargs)
        own: dict[str, Any] = {"positional_embedding": self.mixture.once(self, self._positions)}
        if self.projection is None:
            with instead_of(self.shared, own):
                return self.shared(*args, **kwargs)
        whole = self.shared.proj
        with instead_of(self.shared, {**own, "proj": None}):
            output = self.shared(*args, **kwargs)
        pooled, *tokens = output if isinstance(output, tuple) else (output,)
        projected = self.projection(pooled, whole.mT, None)
        return (projected, *tokens) if tokens else projected

    def _positions(self, weights: Tensor) -> Tensor:
        own = self.shared.positional_embedding.expand(weights_of(self.mixture).shape[0], -1, -1).clone()
        for name, _, deltas in self.vectors():
            known = mixed_by(weights, deltas.flatten(1)).view(len(weights), -1, own.shape[-1])
            if name == "class_embedding":
                own[:, :1] += known
            else:
                own += known
        return own


class RoutedTokens(Routed):
    """A module that adds parameters of (1, tokens, d) or (d) to every example's tokens: each example gets its own.

    Its own code runs with p_s + Σ_t w_t δ_t of shape (B, tokens, d) in their place. Positions that it resizes to the image's
    are resized first, each expert's once a size: that is linear, so that it is the same.
    """

    resizing, positions = "interpolate_pos_encoding", "position_embeddings"

    def forward(self, *args, **kwargs):
        weights = self.mixture.weights
        if weights is None:
            return self.shared(*args, **kwargs)
        own, resizes = {}, False
        for name, shared, deltas in self.vectors():
            own[name] = self.own_vector(name, shared, deltas).reshape(len(weights), -1, shared.shape[-1])
            if name == self.positions and hasattr(self.shared, self.resizing):
                resizes = True
                self.shared.__dict__[self.resizing] = partial(self._resized, shared, deltas)
        try:
            with instead_of(self.shared, own):
                return self.shared(*args, **kwargs)
        finally:
            if resizes:
                del self.shared.__dict__[self.resizing]

    def _resized(self, shared: Tensor, deltas: Tensor, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Each example's positions, (B, tokens, d), as the module resizes them to an image's size."""

        def resized(positions: Tensor) -> Tensor:
            with instead_of(self.shared, {self.positions: positions}):
                return getattr(type(self.shared), self.resizing)(self.shared, embeddings, height, width)

        def find(weights: Tensor) -> Tensor:
            size = height, width, deltas.device
            if size not in self._sizes:
                self._sizes[size] = torch.cat([resized(delta) for delta in deltas])
            with torch.autocast(weights.device.type, enabled=False):
                return mixed_by(weights, self._sizes[size]).add_(resized(shared)).to(shared.dtype)

        return self.mixture.once((self, self.positions, height, width), find)

    def prepare(self, planner: Planner, deltas: dict[str, Any]) -> None:
        super().prepare(planner, deltas)
        self._sizes: dict[Any, Tensor] = {}
