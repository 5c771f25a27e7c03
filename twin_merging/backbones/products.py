"""A plain model's linear layers by the faster of torch's own products and oneDNN's, when it answers and when it learns.

torch's float32 products on a CPU are MKL's, which on many AMD processors do half of what oneDNN's do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twin_merging.dynamic.kernels import SMALL, onednn
from twin_merging.dynamic.speeds import Speeds

MANY = 256  # rows from which a product is worth a transposed copy of a matrix


@contextmanager
def faster_products(model: nn.Module, autocast: bool = False, fixed: bool = False) -> Iterator[None]:
    """Within, linear layers of float32 that lie on a CPU multiply by oneDNN, if that is faster on this machine.

    Under autocast a weight that does not change is rounded once, and not at each product: half of its size more in memory.

    Args:
        autocast: whether the model is going to run under it.
        fixed: no weight changes meanwhile; else those do that have a gradient.
    """
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and _is_for_cpu(layer.weight)]
    if not layers or not (autocast or Speeds.of("cpu").kernel == "onednn"):
        yield
        return
    for layer in layers:
        layer.__class__ = FasterLinear
        cast(FasterLinear, layer).keeps = fixed or not layer.weight.requires_grad
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Linear
            for name in ("keeps", "rounded"):
                layer.__dict__.pop(name, None)


class FasterLinear(nn.Linear):
    """y = x Wᵀ + c by oneDNN, and its gradients too; under autocast torch's own product, which is oneDNN's, with W rounded before."""

    keeps: bool

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            return F.linear(x, self._rounded() if self.keeps else self.weight, self.bias)
        if x.numel() * len(self.weight) < SMALL or x.dtype != torch.float32:
            return F.linear(x, self.weight, self.bias)
        if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            return Product.apply(x, self.weight, self.bias)
        return onednn(x, self.weight, self.bias)

    def _rounded(self) -> Tensor:
        """W as autocast would round it."""
        dtype, known = torch.get_autocast_dtype("cpu"), self.__dict__.get("rounded")
        if known is None or known.dtype != dtype:
            with torch.inference_mode(False), torch.no_grad():  # what is made by an evaluation is learned with later
                known = self.__dict__["rounded"] = self.weight.to(dtype)
        return known


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
