"""Routed layers: one forward pass in which every example has weights of its own, θ_s + Σ_t w_t(x_b) v_t."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twin_merging.dynamic.kernels import by_name
from twin_merging.dynamic.matrix import RoutedMatrix
from twin_merging.dynamic.mixture import Mixture
from twin_merging.dynamic.plan import Planner
from twin_merging.errors import UserError
from twin_merging.sparsifiers.svd import Factors

Deltas = Mapping[str, Factors | Tensor]
"""v_t by name. What is stored sparsely is routed as dense deltas: it is small on disk and not in memory."""


class Routed(nn.Module):
    """A layer of the shared expert, and what its parameters get from the experts.

    Args:
        shared: the layer, with θ_s.
        mixture: where the batch's weights are.
        planner: chooses how products are computed.
        deltas: v_t by the name of the layer's parameter.
        path: the layer's name, for messages.
    """

    shared: Any
    factored: ClassVar[tuple[str, ...]] = ()
    """The parameters whose deltas it takes as factors; of others it gets the dense ones."""

    def __init__(self, shared: nn.Module, mixture: Mixture, planner: Planner, deltas: Deltas, path: str):
        super().__init__()
        self.shared, self.mixture, self.planner, self.path = shared, mixture, planner, path
        self.prepare(planner, dict(deltas))

    def prepare(self, planner: Planner, deltas: dict[str, Any]) -> None:
        """Store what the experts know in the form that ``forward`` reads."""
        for name, delta in deltas.items():
            self.register_buffer(f"{name}_deltas", delta)

    def matrix(self, planner: Planner, weight: Factors | Tensor, bias: Tensor | None, name: str = "") -> RoutedMatrix:
        """One of the layer's matrices, (m, n), with the bias that is added to its products."""
        found = RoutedMatrix(self.mixture, planner, weight, bias)
        found.path = f"{self.path}.{name}" if name else self.path
        return found

    def vectors(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, shared expert's value and deltas of each of the layer's own parameters that has some."""
        for name, shared in self.shared._parameters.items():
            deltas = self._buffers.get(f"{name}_deltas")
            if deltas is not None:
                yield name, shared, deltas

    def own_vector(self, name: str, shared: Tensor, deltas: Tensor) -> Tensor:
        """p_s + Σ_t w_t δ_t of a parameter, (B, *shape)."""
        return self.mixture.once((self, name), lambda weights: torch.tensordot(weights, deltas, 1).add_(shared))

    def check_rows(self, x: Tensor) -> None:
        """Refuse an input whose rows are not the examples, such as relative positions, which have no weights of their own."""
        examples = weights_of(self.mixture).shape[0]
        if x.shape[0] != examples:
            raise not_routable(self, f"an input of {list(x.shape)}", f"[{examples}, ...]: one row an example")


class RoutedLinear(Routed):
    """y_b = (W_s + Σ_t w_t Δ_t) x_b + c_s + Σ_t w_t δ_t for x of (B, ..., n)."""

    bias_deltas: Any
    factored = ("weight",)

    def prepare(self, planner: Planner, deltas: dict[str, Any]) -> None:
        weight, bias = deltas.get("weight"), deltas.get("bias")
        self.own = None if weight is None else self.matrix(planner, self.oriented(weight), bias)
        self.register_buffer("bias_deltas", bias if weight is None else None)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.mixture.weights
        if weights is None:
            return self.alone(x)
        self.check_rows(x)
        if self.own is not None:
            return self.own(x, self.shared_matrix, self.shared.bias)
        y = self.alone(x)
        return y + spread(weights @ self.bias_deltas, y)

    def alone(self, x: Tensor) -> Tensor:
        """W_s x + c_s, by the kernel that the others take."""
        if torch.is_autocast_enabled(x.device.type):
            return self.shared(x)
        linear = by_name(self.planner.speeds_of(x.device.type, x.element_size()).kernel)
        return linear(x, self.shared_matrix, self.shared.bias)

    @property
    def shared_matrix(self) -> Tensor:
        """W_s, (m, n)."""
        return self.shared.weight

    def oriented(self, weight: Factors | Tensor) -> Factors | Tensor:
        """The deltas of (T, m, n)."""
        return weight

    @property
    def weight(self) -> Tensor:
        """W_s, for code that looks at the layer's dtype or device."""
        return self.shared.weight


class RoutedConv1D(RoutedLinear):
    """GPT-2's linear layer, whose weight is stored as (n, m)."""

    @property
    def shared_matrix(self) -> Tensor:
        return self.shared.weight.mT

    def oriented(self, weight: Factors | Tensor) -> Factors | Tensor:
        return Factors(weight.V, weight.S, weight.U) if isinstance(weight, Factors) else weight.mT


class RoutedConv2d(Routed):
    """A convolution as a product of its patches with one matrix an example: y_b = (W_s + Σ_t w_t Δ_t) patches(x_b)."""

    bias_deltas: Any

    def prepare(self, planner: Planner, deltas: dict[str, Any]) -> None:
        weight, bias = deltas.get("weight"), deltas.get("bias")
        self.own = None
        if weight is not None:
            assert isinstance(weight, Tensor)
            self.own = self.matrix(planner, weight.flatten(2), bias)
        self.register_buffer("bias_deltas", bias if weight is None else None)

    def forward(self, x: Tensor) -> Tensor:
        weights, layer = self.mixture.weights, self.shared
        if weights is None:
            return layer(x)
        self.check_rows(x)
        if self.own is None:
            return layer(x) + (weights @ self.bias_deltas)[:, :, None, None]
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT
        y = self.own(patches, layer.weight.flatten(1), layer.bias).mT
        height, width = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, padding, dilation, kernel, stride in zip(
                x.shape[-2:], layer.padding, layer.dilation, layer.kernel_size, layer.stride, strict=True
            )
        )
        return y.reshape(len(x), -1, height, width)

    @property
    def weight(self) -> Tensor:
        """W_s, for code that looks at the layer's dtype or device."""
        return self.shared.weight


class RoutedEmbedding(Routed):
    """Row ids of W_s + Σ_t w_t Δ_t for ids of (B, S), or of (1, S) where all examples look up the same."""

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
            rows = self.dense[:, ids]  # (T, B or 1, S, n)
            return y + torch.einsum("bt,tbsn->bsn", weights, rows.expand(-1, len(weights), -1, -1))
        rows = self.U[ids]  # (B or 1, S, T, r)
        return y + (rows * weights[:, None, :, None]).flatten(-2) @ self.V

    @property
    def weight(self) -> Tensor:
        """Refused: an architecture that reads the whole matrix would read one that no example has."""
        raise not_routable(self, "its whole matrix is read", "ids of one row an example")


class RoutedLayerNorm(Routed):
    """Layer norm over the last dimension with γ_s + Σ_t w_t δγ_t and β_s + Σ_t w_t δβ_t."""

    def forward(self, x: Tensor) -> Tensor:
        if self.mixture.weights is None:
            return self.shared(x)
        self.check_rows(x)
        y = self.normalized(x)
        gain, shift = (self.mixed(name, y) for name in ("weight", "bias"))
        y = y if gain is None else y * gain
        return y if shift is None else y + shift

    def normalized(self, x: Tensor) -> Tensor:
        """``x`` before gain and shift."""
        return F.layer_norm(x, self.shared.normalized_shape, eps=self.shared.eps)

    def mixed(self, name: str, like: Tensor) -> Tensor | None:
        """A vector that is shared, or one a row of the batch; None if the layer has none."""
        shared, deltas = getattr(self.shared, name, None), self._buffers.get(f"{name}_deltas")
        return shared if shared is None or deltas is None else spread(self.own_vector(name, shared, deltas), like)


class RoutedRMSNorm(RoutedLayerNorm):
    """torch's RMS norm over the last dimension, which has a gain and no shift."""

    def normalized(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.shared.normalized_shape, eps=self.shared.eps)


class RoutedScale(Routed):
    """A layer whose vectors multiply its input's last dimension as they are, such as RMSNorm: its own code runs with one a row.

    γ_b = γ_s + Σ_t w_t δγ_t takes the place of γ, in the shape (B, 1, ..., n).
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.mixture.weights is None:
            return self.shared(x)
        self.check_rows(x)
        own = {name: spread(self.own_vector(name, vector, deltas), x) for name, vector, deltas in self.vectors()}
        with instead_of(self.shared, own):
            return self.shared(x)


class RoutedWhole(Routed):
    """A module whose own code runs, with its attributes for those who look at them."""

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("shared"), name)


class RoutedTokens(RoutedWhole):
    """A module that adds parameters of (1, tokens, d) or (d) to every example's tokens: each example gets its own.

    Its own code runs with p_s + Σ_t w_t δ_t of shape (B, tokens, d) in their place.
    """

    def forward(self, *args, **kwargs):
        weights = self.mixture.weights
        if weights is None:
            return self.shared(*args, **kwargs)
        own = {
            name: self.own_vector(name, shared, deltas).reshape(len(weights), -1, shared.shape[-1])
            for name, shared, deltas in self.vectors()
        }
        with instead_of(self.shared, own):
            return self.shared(*args, **kwargs)


@contextmanager
def instead_of(module: nn.Module, tensors: Mapping[str, Tensor | None]) -> Iterator[None]:
    """Have a module compute with other tensors, or none, in the place of its own parameters."""
    parameters: dict[str, Any] = module._parameters
    before = {name: parameters[name] for name in tensors}
    parameters.update(tensors)
    try:
        yield
    finally:
        parameters.update(before)


def weights_of(mixture: Mixture) -> Tensor:
    """w(x) of the batch, (B, T)."""
    assert mixture.weights is not None
    return mixture.weights


def spread(values: Tensor, like: Tensor) -> Tensor:
    """(B, n) with ones in between: (B, 1, ..., n), to meet ``like`` of (B, ..., n)."""
    return values.view(len(values), *[1] * (like.dim() - 2), values.shape[-1])


def not_routable(layer: Routed, found: str, expected: str) -> UserError:
    """The error of a layer that is used in a way that has no routed form."""
    return UserError(
        "this module cannot be routed", key=layer.path, found=found, expected=expected,
        hint=f"leave it out of the merge: parameters.exclude=['{layer.path.partition('.')[2]}.*']",
    )  # fmt: skip
