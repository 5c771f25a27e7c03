"""A plain model's linear layers by the faster of torch's own products and oneDNN's, when it answers and when it learns.

torch's float32 products on a CPU are MKL's, which on many AMD processors do half of what oneDNN's do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twin_merging.dynamic.kernels import SMALL, onednn
from twin_merging.dynamic.speeds import Speeds

MANY = 256  # rows from which a product is worth a transposed copy of a matrix


@contextmanager
def faster_products(model: nn.Module) -> Iterator[None]:
    """Within, the float32 linear layers of a model that lies on a CPU multiply by oneDNN, if that is faster on this machine."""
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and _is_for_cpu(layer.weight)]
    if not layers or Speeds.of("cpu").kernel != "onednn":
        yield
        return
    for layer in layers:
        layer.__class__ = FasterLinear
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Linear


class FasterLinear(nn.Linear):
    """y = x Wᵀ + c by oneDNN, and its gradients too; under autocast torch's own."""

    def forward(self, x: Tensor) -> Tensor:
        small = x.numel() * len(self.weight) < SMALL
        if small or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return F.linear(x, self.weight, self.bias)
        if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            return Product.apply(x, self.weight, self.bias)
        return onednn(x, self.weight, self.bias)


class Product(torch.autograd.Function):
    """y = x Wᵀ + c for x of (..., n) and W of (m, n), with ∂x = ∂y W, ∂W = ∂yᵀ x and ∂c = Σ ∂y.

    oneDNN multiplies by the transpose of what lies in order, so that gradients take copies of W or of x and ∂y in the other
    order. They are small beside a product of many rows; one of few is torch's own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return onednn(x.detach(), weight.detach(), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        many = len(rows) >= MANY
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = onednn(grad.contiguous(), weight.mT.contiguous()) if many else grad @ weight
        if ctx.needs_input_grad[1]:
            given = x.flatten(0, -2)
            of_weight = onednn(rows.mT.contiguous(), given.mT.contiguous()) if many else rows.mT @ given
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_x, of_weight, of_bias


def _is_for_cpu(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32
