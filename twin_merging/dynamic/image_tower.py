"""open_clip's image tower, which has a class token, positions and a projection of its own."""

from __future__ import annotations

from typing import Any

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
