"""BatchNorm as it answers, of which every example has gain, shift and running statistics of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twin_merging.dynamic.routed import Routed
from twin_merging.parameters import VARIANCE

WITH_ACTIVATION = ("timm.layers.norm_act", "BatchNormAct2d")
"""timm's class that drops and activates what it has normalized."""


def is_batch_norm(layer: nn.Module) -> bool:
    """Whether a layer is a BatchNorm that ``RoutedBatchNorm`` stands for: one with running statistics."""
    known = type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d) or _activates(layer)
    return known and getattr(layer, VARIANCE) is not None


class RoutedBatchNorm(Routed):
    """y_b = γ_b (x_b − μ_b) / √(σ²_b + ε) + β_b for x of (B, channels, ...), each of γ, β, μ and σ² as p_s + Σ_t w_t δ_t.

    A σ²_b that rounding, or weights that are no mixture's, make negative is 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.mixture.weights is None:
            return self.shared(x)
        self.check_rows(x)
        gain, shift = self.mixture.once(self, lambda _: self._affine())
        shape = (len(gain), -1, *[1] * (x.dim() - 2))
        y = torch.addcmul(shift.view(shape), x.to(gain.dtype), gain.view(shape)).to(x.dtype)
        return self.shared.act(self.shared.drop(y)) if _activates(self.shared) else y

    def _affine(self) -> tuple[Tensor, Tensor]:
        """γ_b / √(σ²_b + ε) and β_b − μ_b γ_b / √(σ²_b + ε), (B, channels), or (1, channels) where they are the same for all."""
        layer = self.shared
        own: dict[str, Tensor] = {"running_mean": layer.running_mean[None], VARIANCE: layer.running_var[None]}
        if layer.affine:
            own |= {"weight": layer.weight[None], "bias": layer.bias[None]}
        own |= {name: self.own_vector(name, shared, deltas) for name, shared, deltas in self.vectors()}
        own = {name: x.to(torch.promote_types(x.dtype, torch.float32)) for name, x in own.items()}
        gain = (own[VARIANCE].clamp(min=0) + layer.eps).rsqrt()
        gain = gain * own["weight"] if layer.affine else gain
        shift = -own["running_mean"] * gain
        shift = shift + own["bias"] if layer.affine else shift
        rows = max(len(gain), len(shift))
        return gain.expand(rows, -1), shift.expand(rows, -1)


def _activates(layer: nn.Module) -> bool:
    return (type(layer).__module__, type(layer).__name__) == WITH_ACTIVATION
