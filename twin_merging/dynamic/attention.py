"""Attention whose projections are packed in one matrix, as open_clip's towers have it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from twin_merging.dynamic.plan import Planner
from twin_merging.dynamic.routed import Routed, mixed_by, spread, weights_of


class RoutedAttention(Routed):
    """nn.MultiheadAttention with packed projections: [q, k, v]_b = (W_s + Σ_t w_t Δ_t) x_b of all three at once."""

    factored = ("in_proj_weight", "out_proj.weight")

    def prepare(self, planner: Planner, deltas: dict[str, Any]) -> None:
        self.own_in = self.own_out = None
        packed, out = deltas.get("in_proj_weight"), deltas.get("out_proj.weight")
        if packed is not None:
            self.own_in = self.matrix(planner, packed, deltas.get("in_proj_bias"), "in_proj")
        if out is not None:
            self.own_out = self.matrix(planner, out, deltas.get("out_proj.bias"), "out_proj")
        self.register_buffer("in_proj_bias_deltas", None if packed is not None else deltas.get("in_proj_bias"))
        self.register_buffer("out_proj_bias_deltas", None if out is not None else deltas.get("out_proj.bias"))

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None, need_weights: bool = True,
        attn_mask: Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """As nn.MultiheadAttention."""
        shared = self.shared
        if self.mixture.weights is None:
            return shared(
                query, key, value, key_padding_mask=key_padding_mask, need_weights=need_weights, attn_mask=attn_mask,
                average_attn_weights=average_attn_weights, is_causal=is_causal,
            )  # fmt: skip
        inputs = [query] if query is key and key is value else [query, key, value]
        if not shared.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        self.check_rows(inputs[0])
        packed = [self._product(x, "in_proj", shared.in_proj_weight, shared.in_proj_bias) for x in inputs]
        parts = [x.chunk(3, -1)[place] for place, x in enumerate(packed * 3 if len(packed) == 1 else packed)]
        heads = [x.unflatten(-1, (shared.num_heads, -1)).transpose(1, 2) for x in parts]
        mask = _joined_mask(attn_mask, key_padding_mask, heads[0])
        q, k, v = heads
        looks = None
        if need_weights:
            scores = q @ k.mT / q.shape[-1] ** 0.5
            looks = (scores if mask is None else scores + mask).softmax(-1)
            found = looks @ v
            looks = looks.mean(1) if average_attn_weights else looks
        else:
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal and mask is None)
        y = self._product(found.transpose(1, 2).flatten(2), "out_proj", shared.out_proj.weight, shared.out_proj.bias)
        return (y if shared.batch_first else y.transpose(0, 1)), looks

    @property
    def out_proj(self) -> Any:
        """The last projection's parameters, for code that looks at them."""
        return SimpleNamespace(**{name: self.own_parameter(f"out_proj.{name}") for name in ("weight", "bias")})

    def merged(self, name: str, shared: Tensor) -> Tensor:
        part, own = ("out_proj", self.own_out) if name.startswith("out_proj") else ("in_proj", self.own_in)
        if own is None:
            return super().merged(name, shared)
        weight, bias = (getattr(self.shared, f"in_proj_{x}") for x in ("weight", "bias"))
        if part == "out_proj":
            weight, bias = self.shared.out_proj.weight, self.shared.out_proj.bias
        return own.merged(weight, bias)[name.endswith("bias")]

    def _product(self, x: Tensor, name: str, weight: Tensor, bias: Tensor | None) -> Tensor:
        matrix = self.own_in if name == "in_proj" else self.own_out
        if matrix is not None:
            return matrix(x, weight, bias)
        y, deltas = F.linear(x, weight, bias), getattr(self, f"{name}_bias_deltas")
        return y if deltas is None else (y + spread(mixed_by(weights_of(self.mixture), deltas), y)).to(y.dtype)


def _joined_mask(attention: Tensor | None, padding: Tensor | None, queries: Tensor) -> Tensor | None:
    """One additive mask that meets (B, heads, S, S); True in either mask means left out, as in nn.MultiheadAttention."""

    def additive(mask: Tensor) -> Tensor:
        if mask.dtype != torch.bool:
            return mask.to(queries.dtype)
        return torch.zeros_like(mask, dtype=queries.dtype).masked_fill_(mask, float("-inf"))

    found = None if padding is None else additive(padding)[:, None, None, :]
    if attention is not None:
        wide = additive(attention)
        wide = wide.view(len(queries), -1, *wide.shape[-2:]) if wide.dim() == 3 else wide
        found = wide if found is None else found + wide
    return found
