"""Routed layers: one forward pass in which every example has weights of its own, θ_s + Σ_t w_t(x_b) v_t."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from twin_merging.dynamic.kernels import by_name
from twin_merging.dynamic.plan import Planner
from twin_merging.dynamic.routed import Routed, exchanged, holder, mixed_by, spread, weights_of
from twin_merging.sparsifiers.svd import Factors


class RoutedLinear(Routed):
    """y_b = (W_s + Σ_t w_t Δ_t) x_b + c_s + Σ_t w_t δ_t for x of (B, ..., n)."""

    bias_deltas: Any
    factored = ("weight",)

    def prepare(self, planner: Planner, deltas: dict[str, Any]) -> None:
        weight, bias = deltas.get("weight"), deltas.get("bias")
        self.own = None if weight is None else self.matrix(planner, self.oriented(weight), bias)
        self.register_buffer("bias_deltas", bias if weight is None else None)

    def forward(self, x: Tensor) -> Tensor:
        batch = self.mixture.batch
        if batch is None:
            return self.alone(x)
        lasting, key = batch.pattern.lasting and not torch.compiler.is_compiling(), (self, x.shape, x.dtype)
        ready = batch.known.get(key) if lasting and x.is_contiguous() else None
        if ready is not None and not torch.is_autocast_enabled(x.device.type):
            return ready(x)
        self.check_rows(x)
        if self.own is None:
            y = self.alone(x)
            return (y + spread(mixed_by(batch.weights, self.bias_deltas), y)).to(y.dtype)
        y = self.own(x, self.shared_matrix, self.shared.bias)
        if lasting and key not in batch.known:
            batch.known[key] = self.own.ready(x, self.shared_matrix, self.shared.bias)
        return y

    def alone(self, x: Tensor) -> Tensor:
        """W_s x + c_s, by the kernel that the others take."""
        if torch.is_autocast_enabled(x.device.type):
            return self.shared(x)
        linear = by_name(self.planner.speeds_of(x.device.type, x.element_size()).kernel)
        return linear(x, self.shared_matrix, self.shared.bias)

    def merged(self, name: str, shared: Tensor) -> Tensor:
        if self.own is None:
            return super().merged(name, shared)
        return self.own.merged(self.shared_matrix, self.shared.bias)[name == "bias"]

    @property
    def shared_matrix(self) -> Tensor:
        """W_s, (m, n)."""
        return self.shared.weight

    def oriented(self, weight: Factors | Tensor) -> Factors | Tensor:
        """The deltas of (T, m, n)."""
        return weight


class RoutedConv1D(RoutedLinear):
    """GPT-2's linear layer, whose weight is stored as (n, m)."""

    @property
    def shared_matrix(self) -> Tensor:
        return self.shared.weight.mT

    def merged(self, name: str, shared: Tensor) -> Tensor:
        own = super().merged(name, shared)
        return own.mT if name == "weight" else own

    def oriented(self, weight: Factors | Tensor) -> Factors | Tensor:
        return Factors(weight.V, weight.S, weight.U) if isinstance(weight, Factors) else weight.mT


class RoutedEmbedding(Routed):
    """Row ids of W_s + Σ_t w_t Δ_t for ids of (B, ...), or of (1, S) where all examples look up the same."""

    dense: Tensor | None
    U: Tensor | None
    V: Tensor | None
    factored = ("weight",)

    def prepare(self, planner: Planner, deltas: dict[str, Any]) -> None:
        delta = deltas["weight"]
        factors = delta if isinstance(delta, Factors) else None
        self.register_buffer("dense", None if isinstance(delta, Factors) else delta)
        self.register_buffer("U", None if factors is None else factors.U.transpose(0, 1).contiguous())  # (rows, T, r)
        self.register_buffer("V", None if factors is None else (factors.V * factors.S.unsqueeze(1)).mT.flatten(0, 1))

    def forward(self, ids: Tensor) -> Tensor:
        y, weights = self.shared(ids), self.mixture.weights
        if weights is None:
            return y
        if ids.dim() != 2 or len(ids) != 1:
            self.check_rows(ids)
        if self.U is None or self.V is None:
            assert self.dense is not None
            rows, weights = self.dense[:, ids], weights.to(self.dense.dtype)  # (T, B or 1, ..., n)
            if len(weights) == 1:
                return (y + torch.tensordot(weights[0], rows, 1)).to(y.dtype)
            rows = rows.expand(-1, len(weights), *rows.shape[2:])
            return (y + torch.einsum("bt,tb...n->b...n", weights, rows)).to(y.dtype)
        if self.mixture.kept is not None and (len(weights) == 1 or ids.dim() == 2):
            experts, w = self.mixture.kept
            return (y + self._few(ids, experts, w.to(self.U.dtype))).to(y.dtype)
        rows = self.U[ids]  # (B or 1, ..., T, r)
        own = rows * spread(weights.to(rows.dtype), rows[..., 0]).unsqueeze(-1)
        return (y + own.flatten(-2) @ self.V).to(y.dtype)

    def _few(self, ids: Tensor, experts: Tensor, w: Tensor) -> Tensor:
        """What rows get from the k experts that their examples have, (B, k) each, or (1, k) for all."""
        assert self.U is not None
        assert self.V is not None
        V = self.V.view(self.U.shape[1], -1, self.V.shape[-1])
        if len(experts) == 1:
            rows = self.U[ids.unsqueeze(-1), experts[0]] * w[0].unsqueeze(-1)  # (..., k, r)
            return rows.flatten(-2) @ V[experts[0]].flatten(0, 1)
        rows = self.U[ids.unsqueeze(-1), experts.unsqueeze(1)] * w[:, None, :, None]  # (B, S, k, r)
        return torch.bmm(rows.flatten(-2), V[experts].flatten(1, 2))

    def merged(self, name: str, shared: Tensor) -> Tensor:
        w = weights_of(self.mixture)[0]
        if self.U is None or self.V is None:
            assert self.dense is not None
            return mixed_by(w, self.dense).add_(shared).to(shared.dtype)
        own = (self.U * w.to(self.U.dtype).unsqueeze(-1)).flatten(1)
        return torch.addmm(shared.to(own.dtype), own, self.V).to(shared.dtype)


class RoutedLayerNorm(Routed):
    """Layer norm over the last dimension with γ_s + Σ_t w_t δγ_t and β_s + Σ_t w_t δβ_t."""

    def forward(self, x: Tensor) -> Tensor:
        if self.mixture.weights is None:
            return self.shared(x)
        self.check_rows(x)
        gain, shift = (self.mixed(name, x) for name in ("weight", "bias"))
        if (gain is None or gain.dim() == 1) and (shift is None or shift.dim() == 1):  # the same for all examples
            return self.normalized(x, gain, shift)
        y = self.normalized(x)
        if gain is None or shift is None:
            y = y if gain is None else y * gain
            return y if shift is None else y + shift
        return torch.addcmul(shift, y, gain)

    def normalized(self, x: Tensor, gain: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """``x`` with one gain and shift for all rows, or none."""
        return F.layer_norm(x, self.shared.normalized_shape, gain, shift, self.shared.eps)

    def mixed(self, name: str, like: Tensor) -> Tensor | None:
        """A vector that is shared, or one a row of the batch; None if the layer has none."""
        shared, deltas = getattr(self.shared, name, None), self._buffers.get(f"{name}_deltas")
        return shared if shared is None or deltas is None else spread(self.own_vector(name, shared, deltas), like)


class RoutedRMSNorm(RoutedLayerNorm):
    """torch's RMS norm over the last dimension, which has a gain and no shift."""

    def normalized(self, x: Tensor, gain: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return F.rms_norm(x, self.shared.normalized_shape, gain, self.shared.eps)


class RoutedScale(Routed):
    """A layer whose vectors multiply its input's last dimension as they are, such as RMSNorm: its own code runs with one a row.

    γ_b = γ_s + Σ_t w_t δγ_t takes the place of γ, in the shape (B, 1, ..., n).
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.mixture.weights is None:
            return self.shared(x)
        self.check_rows(x)
        places = self.mixture.once((self, x.dim()), lambda _: [
            (*holder(self.shared, name), spread(self.own_vector(name, vector, deltas), x))
            for name, vector, deltas in self.vectors()
        ])  # fmt: skip
        with exchanged(places):
            return self.shared(x)
