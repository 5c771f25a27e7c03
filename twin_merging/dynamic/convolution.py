"""Convolutions of which every example has kernels of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twin_merging.dynamic.plan import Planner
from twin_merging.dynamic.routed import Routed, mixed_by

AT_ONCE = 1 << 24  # numbers of examples' own kernels that are in memory at a time
Rows = slice | Tensor


def is_convolution(layer: nn.Module) -> bool:
    """Whether a layer computes what ``RoutedConv2d`` does: torch's convolution of images, a subclass that leaves it so, or timm's ``Conv2dSame``."""
    kind: Any = type(layer)
    if not isinstance(layer, nn.Conv2d):
        return False
    plain = kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward
    return plain or _pads_by_size(layer)


def padded(layer: Any, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The images, padded where a convolution cannot do it by itself, and the padding that is left to it."""
    if _pads_by_size(layer) or layer.padding == "same":
        sides = [
            max((ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            for size, stride, kernel, dilation in zip(
                x.shape[-2:], layer.stride, layer.kernel_size, layer.dilation, strict=True
            )
        ]
        around = [(side // 2, side - side // 2) for side in sides]
    elif layer.padding == "valid":
        return x, (0, 0)
    elif layer.padding_mode == "zeros":
        return x, layer.padding
    else:
        around = [(side, side) for side in layer.padding]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, [*around[1], *around[0]], mode=mode), (0, 0)


class RoutedConv2d(Routed):
    """y_b = (W_s + Σ_t w_t Δ_t) ∗ x_b + c_s + Σ_t w_t δ_t for images x of (B, channels, height, width).

    It is a product of patches with one matrix an example where patches do not overlap, as in an embedding of patches or with
    kernels of one pixel, and where there are fewer of them than outputs, so that they are smaller than the kernels. Else
    examples lie side by side as groups of one convolution whose kernels are all examples', so that the layer's own groups,
    as of depthwise convolutions, are kept and no pixel is copied.
    """

    own: Any

    def prepare(self, planner: Planner, deltas: dict[str, Any]) -> None:
        layer, self.own = self.shared, None
        if "weight" in deltas and layer.groups == 1:
            self.own = self.matrix(planner, deltas["weight"].flatten(2), deltas.get("bias"))
        else:
            super().prepare(planner, deltas)

    def forward(self, x: Tensor) -> Tensor:
        weights, layer = self.mixture.weights, self.shared
        if weights is None:
            return layer(x)
        self.check_rows(x)
        x, padding = padded(layer, x)
        kernels, biases = (self._buffers.get(f"{name}_deltas") for name in ("weight", "bias"))
        if self.own is not None:
            size = self._size(x, padding)
            if prod(layer.kernel_size) <= prod(layer.stride) or prod(size) <= len(layer.weight):
                return self._of_patches(x, padding, size)
            kernels, biases = self.own.dense.view(-1, *layer.weight.shape), self.own.bias
        if kernels is None:
            y = F.conv2d(x, layer.weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups)
            return y if biases is None else (y + mixed_by(weights, biases)[:, :, None, None]).to(y.dtype)
        whole: Any = None
        for rows, w in self._parts(weights, kernels[0].numel()):
            part = self._side_by_side(x[rows], _own(layer.weight, kernels, w), _own(layer.bias, biases, w), padding)
            if len(part) == len(x):
                return part
            whole = part.new_empty(len(x), *part.shape[1:]) if whole is None else whole
            whole[rows] = part
        return whole

    def merged(self, name: str, shared: Tensor) -> Tensor:
        if self.own is None:
            return super().merged(name, shared)
        return self.own.merged(self.shared.weight.flatten(1), self.shared.bias)[name == "bias"].view_as(shared)

    def _of_patches(self, x: Tensor, padding: tuple[int, int], size: Sequence[int]) -> Tensor:
        layer = self.shared
        patches = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride).mT
        return self.own(patches, layer.weight.flatten(1), layer.bias).mT.reshape(len(x), -1, *size)

    def _size(self, x: Tensor, padding: tuple[int, int]) -> list[int]:
        """Height and width of what is computed."""
        layer = self.shared
        sides = zip(x.shape[-2:], padding, layer.dilation, layer.kernel_size, layer.stride, strict=True)
        return [
            (side + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for side, pad, dilation, kernel, stride in sides
        ]

    def _parts(self, weights: Tensor, size: int) -> Iterator[tuple[Rows, Tensor]]:
        """(examples, their weights): all of the same weights together where these are few, else as many as ``AT_ONCE`` lets."""
        batch = self.mixture.batch
        assert batch is not None
        if len(weights) == 1:
            yield slice(None), weights
        elif 4 * batch.pattern.distinct <= len(weights):
            for group in batch.groups:
                yield group.rows, weights[group.rows[:1]]
        else:
            count = max(1, AT_ONCE // size)
            for start in range(0, len(weights), count):
                some = slice(start, start + count)
                yield some, weights[some]

    def _side_by_side(self, x: Tensor, kernels: Tensor, biases: Tensor | None, padding: tuple[int, int]) -> Tensor:
        """Convolve images (n, channels, ...) with kernels (n, m, channels / groups, ...), or (1, m, ...) for all."""
        layer, alike = self.shared, len(kernels) == 1
        images = x if alike else x.reshape(1, -1, *x.shape[2:])
        groups = layer.groups * len(kernels)
        bias = None if biases is None else biases.expand(len(kernels), -1).flatten()
        y = F.conv2d(images, kernels.flatten(0, 1), bias, layer.stride, padding, layer.dilation, groups)
        return y if alike else y.view(len(x), -1, *y.shape[2:])


def _pads_by_size(layer: nn.Module) -> bool:
    """Whether it is timm's convolution that pads as TensorFlow does: so that there are ⌈size / stride⌉ outputs."""
    return (type(layer).__module__, type(layer).__name__) == ("timm.layers.conv2d_same", "Conv2dSame")


def _own(shared: Tensor | None, deltas: Tensor | None, weights: Tensor) -> Any:
    """p_s + Σ_t w_t δ_t of some examples, (n, *shape); (1, *shape) where it is the same for all, None where there is none."""
    if shared is None or deltas is None:
        return None if shared is None else shared[None]
    with torch.autocast(weights.device.type, enabled=False):
        return mixed_by(weights, deltas).add_(shared).to(shared.dtype)
