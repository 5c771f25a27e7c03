"""A plain model's linear layers and packed attention by the faster of torch's own products and oneDNN's, when it answers and when it learns.

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
def faster_products(
    model: nn.Module, autocast: bool = False, fixed: bool = False, repeated: bool = False
) -> Iterator[None]:
    """Within, linear layers and packed attention of float32 that lie on a CPU multiply by oneDNN, if that is faster on this machine.

    Under autocast a weight that does not change is rounded once, and not at each product: half of its size more in memory.

    Args:
        autocast: whether the model is going to run under it.
        fixed: no weight changes meanwhile; else those do that have a gradient.
        repeated: several batches go back before weights change: their transposes are kept until then, as much memory as they.
    """
    layers = [layer for layer in model.modules() if type(layer) in FASTER and _is_for_cpu(next(layer.parameters()))]
    if not layers or not (autocast or Speeds.of("cpu").kernel == "onednn"):
        yield
        return
    before = [type(layer) for layer in layers]
    for layer in layers:
        layer.__class__ = FASTER[type(layer)]
        faster = cast(Faster, layer)
        faster.fixed, faster.rounded, faster.turned = fixed, {}, Transposes() if repeated else None
    try:
        yield
    finally:
        for layer, kind in zip(layers, before, strict=True):
            layer.__class__ = kind
            for name in ("fixed", "rounded", "turned"):
                layer.__dict__.pop(name, None)


class Faster:
    """What multiplies by oneDNN; under autocast by torch's own product, which is oneDNN's, with a weight that stays rounded before."""

    fixed: bool
    rounded: dict[int, Tensor]
    turned: Transposes | None

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, rows: slice = slice(None)) -> Tensor:
        """x Wᵀ + c of some rows of W and c, and its gradients."""
        rounds = torch.is_autocast_enabled("cpu")
        if rounds and (self.fixed or not weight.requires_grad):
            weight = self._rounded(weight)
        if rows != slice(None):
            weight, bias = weight[rows], None if bias is None else bias[rows]
        if rounds or x.numel() * len(weight) < SMALL or x.dtype != torch.float32:
            return F.linear(x, weight, bias)
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            return Product.apply(x, weight, bias, self.turned)
        return onednn(x, weight, bias)

    def _rounded(self, weight: Tensor) -> Tensor:
        """W as autocast would round it."""
        dtype, known = torch.get_autocast_dtype("cpu"), self.rounded.get(id(weight))
        if known is None or known.dtype != dtype:
            with torch.inference_mode(False), torch.no_grad():  # what is made by an evaluation is learned with later
                known = self.rounded[id(weight)] = weight.to(dtype)
        return known


class FasterLinear(Faster, nn.Linear):
    """y = x Wᵀ + c."""

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight, self.bias)


class FasterAttention(Faster, nn.MultiheadAttention):
    """Attention of tokens (B, S, d) to each other, or of some to all, [q, k, v] = x Wᵀ + c of one packed matrix; any other is
    as it was."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None, need_weights: bool = True,
        attn_mask: Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """As nn.MultiheadAttention."""
        packed = self.in_proj_weight is not None and self.bias_k is None and not self.add_zero_attn
        own = key is value and query.dim() == 3 and self.batch_first
        masked = key_padding_mask is not None or (
            attn_mask is not None and (attn_mask.dim() != 2 or not attn_mask.is_floating_point())
        )
        if not packed or not own or masked or need_weights or (self.training and self.dropout):
            return super().forward(
                query, key, value, key_padding_mask=key_padding_mask, need_weights=need_weights, attn_mask=attn_mask,
                average_attn_weights=average_attn_weights, is_causal=is_causal,
            )  # fmt: skip
        weight, bias, width = self.in_proj_weight, self.in_proj_bias, self.embed_dim
        if query is key:
            parts = self.product(query, weight, bias).chunk(3, -1)
        else:
            first, others = slice(width), slice(width, None)
            parts = self.product(query, weight, bias, first), *self.product(key, weight, bias, others).chunk(2, -1)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        mixed = attended(q, k, v, attn_mask) if q.requires_grad else F.scaled_dot_product_attention(q, k, v, attn_mask)
        y = self.product(mixed.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        return y, None


FASTER = {nn.Linear: FasterLinear, nn.MultiheadAttention: FasterAttention}


def attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q kᵀ / √d + mask) v, whose backward pass takes a part of the fused one's on a CPU."""
    scores = (q / q.shape[-1] ** 0.5) @ k.mT
    return (scores if mask is None else scores + mask).softmax(-1).to(v.dtype) @ v


class Transposes:
    """Wᵀ in order of each weight, or of some of its rows, made when it has changed since it was last asked for."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], tuple[int, Tensor]] = {}

    def of(self, weight: Tensor) -> Tensor:
        """Wᵀ of (m, n), as (n, m)."""
        place = weight.data_ptr(), len(weight)
        version, turned = self._kept.get(place, (None, weight))
        if version != weight._version:
            turned = weight.mT.contiguous()
            self._kept[place] = weight._version, turned
        return turned


class Product(torch.autograd.Function):
    """y = x Wᵀ + c for x of (..., n) and W of (m, n), with ∂x = ∂y W, ∂W = ∂yᵀ x and ∂c = Σ ∂y.

    oneDNN multiplies by the transpose of what lies in order, so that ∂x takes a copy of W in the other order. It is small beside
    a product of many rows; one of few is torch's own. So is ∂W, for which x and ∂y would have to be turned.

    Args:
        turned: keeps those of W.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, turned: Transposes | None = None) -> Tensor:
        ctx.turned = turned
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return onednn(x.detach(), weight.detach(), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            many = len(rows) >= MANY
            of_x = onednn(grad.contiguous(), (ctx.turned or Transposes()).of(weight)) if many else grad @ weight
        if ctx.needs_input_grad[1]:
            of_weight = rows.mT @ x.flatten(0, -2)
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_x, of_weight, of_bias, None


def _is_for_cpu(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32
