"""Routed layers: one forward pass in which every example has weights of its own, W_b = W_s + Σ_t w_t(x_b) Δ_t.

With factors Δ_t = U_t S_t V_tᵀ, W_b is never formed: y_b = W_s x_b + U (g_b ⊙ (Vᵀ x_b)), where U and V hold all experts'
factors side by side and g_b repeats w_t(x_b)·S_t. Deltas that are not factored (biases, norms, an uncompressed matrix)
are mixed as a product with the (B, T) weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twin_merging.errors import UserError
from twin_merging.sparsifiers.sparse import Sparse, dense
from twin_merging.sparsifiers.svd import Factors

Delta = Factors | Sparse | Tensor
"""Exclusive knowledge of one parameter for all T experts: factors of (T, m, n), or the stacked deltas (T, *shape).

What is stored sparsely is routed as dense deltas: it is small on disk and not in memory.
"""


class Mixture:
    """The expert weights (B, T) of the batch that is being evaluated; None evaluates the shared expert alone."""

    weights: Tensor | None = None


class LowRank(nn.Module):
    """All experts' factors of one matrix, side by side: U (m, T·r), V (n, T·r), S (T, r)."""

    U: Tensor
    V: Tensor
    S: Tensor

    def __init__(self, factors: Factors):
        super().__init__()
        self.register_buffer("U", factors.U.transpose(0, 1).flatten(1).contiguous())
        self.register_buffer("V", factors.V.transpose(0, 1).flatten(1).contiguous())
        self.register_buffer("S", factors.S.contiguous())

    def gates(self, weights: Tensor) -> Tensor:
        """g: (B, T·r)."""
        return (weights.unsqueeze(-1) * self.S).flatten(1)


class RoutedLinear(nn.Module):
    """y_b = (W_s + Σ_t w_t Δ_t) x_b + c_s + Σ_t w_t δ_t for x of (B, ..., n)."""

    dense: Tensor | None
    bias_deltas: Tensor | None

    def __init__(self, shared: nn.Linear, mixture: Mixture, weight: Delta | None = None, bias: Tensor | None = None):
        super().__init__()
        self.shared, self.mixture = shared, mixture
        self.low_rank = LowRank(weight) if isinstance(weight, Factors) else None
        self.register_buffer("dense", weight if isinstance(weight, Tensor) else None)
        self.register_buffer("bias_deltas", bias)

    def forward(self, x: Tensor) -> Tensor:
        y, weights = self.shared(x), self.mixture.weights
        if weights is None:
            return y
        _check_batch(self, x, len(weights))
        if self.low_rank is not None:
            g = _spread(self.low_rank.gates(weights), x)
            y = y + F.linear(F.linear(x, self.low_rank.V.mT) * g.to(x.dtype), self.low_rank.U)
        if self.dense is not None:
            mixed = torch.tensordot(weights, self.dense, 1)  # (B, m, n)
            y = y + torch.bmm(x.reshape(len(x), -1, x.shape[-1]), mixed.mT.to(x.dtype)).view_as(y)
        if self.bias_deltas is not None:
            y = y + _spread(weights @ self.bias_deltas, y)
        return y


class RoutedEmbedding(nn.Module):
    """Row ids of W_s + Σ_t w_t Δ_t for ids of (B, S), or of (1, S) where all examples look up the same."""

    dense: Tensor

    def __init__(self, shared: nn.Embedding, mixture: Mixture, weight: Delta):
        super().__init__()
        self.shared, self.mixture = shared, mixture
        self.low_rank = LowRank(weight) if isinstance(weight, Factors) else None
        self.register_buffer("dense", weight if isinstance(weight, Tensor) else None)

    def forward(self, ids: Tensor) -> Tensor:
        y, weights = self.shared(ids), self.mixture.weights
        if weights is None:
            return y
        if ids.dim() != 2 or len(ids) != 1:
            _check_batch(self, ids, len(weights))
        if self.low_rank is not None:
            rows = F.embedding(ids, self.low_rank.U)  # (B or 1, S, T·r)
            return y + F.linear(rows * self.low_rank.gates(weights).unsqueeze(1), self.low_rank.V)
        rows = self.dense[:, ids]  # (T, B or 1, S, n)
        return y + torch.einsum("bt,tbsn->bsn", weights, rows.expand(-1, len(weights), -1, -1))

    @property
    def weight(self) -> Tensor:
        """Refused: an architecture that reads the whole matrix would read one that no example has."""
        raise _not_routable(self, "its whole matrix is read", "ids of one row an example")


class RoutedLayerNorm(nn.Module):
    """Layer norm over the last dimension with γ_s + Σ_t w_t δγ_t and β_s + Σ_t w_t δβ_t."""

    weight_deltas: Tensor | None
    bias_deltas: Tensor | None

    def __init__(
        self, shared: nn.LayerNorm, mixture: Mixture, weight: Tensor | None = None, bias: Tensor | None = None
    ):
        super().__init__()
        self.shared, self.mixture = shared, mixture
        self.register_buffer("weight_deltas", weight)
        self.register_buffer("bias_deltas", bias)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.mixture.weights
        if weights is None:
            return self.shared(x)
        _check_batch(self, x, len(weights))
        y = F.layer_norm(x, self.shared.normalized_shape, eps=self.shared.eps)
        gain = _mixed(self.shared.weight, self.weight_deltas, weights, y)
        return y * gain + _mixed(self.shared.bias, self.bias_deltas, weights, y)


ROUTED = {nn.Linear: RoutedLinear, nn.Embedding: RoutedEmbedding, nn.LayerNorm: RoutedLayerNorm}


def route(encoder: nn.Module, deltas: Mapping[str, Delta], mixture: Mixture) -> nn.Module:
    """Replace, in place, each module of ``encoder`` that has a delta by its routed form.

    Args:
        encoder: holds the shared expert's weights.
        deltas: exclusive knowledge by parameter name.
        mixture: where the routed modules read the batch's weights.

    Raises:
        UserError: if a delta belongs to a module that has no routed form.
    """
    by_module: dict[str, dict[str, Delta]] = {}
    for name, delta in deltas.items():
        module, _, parameter = name.rpartition(".")
        by_module.setdefault(module, {})[parameter] = dense(delta) if isinstance(delta, Sparse) else delta
    for name, parts in by_module.items():
        shared = encoder.get_submodule(name)
        routed = ROUTED.get(type(shared))
        if routed is None:
            raise UserError(
                "this module has no routed form", key=f"{type(encoder).__name__}.{name}", found=type(shared).__name__,
                expected="one of " + ", ".join(kind.__name__ for kind in ROUTED),
                hint=f"leave it out of the merge: parameters.exclude=['{name}.*']",
            )  # fmt: skip
        parent, _, attribute = name.rpartition(".")
        layer = routed(shared, mixture, **parts)
        layer.path = f"{type(encoder).__name__}.{name}"
        setattr(encoder.get_submodule(parent), attribute, layer)
    return encoder


def _check_batch(layer: nn.Module, x: Tensor, examples: int) -> None:
    """Refuse an input whose rows are not the examples, such as relative positions, which have no weights of their own."""
    if len(x) != examples:
        raise _not_routable(layer, f"an input of {list(x.shape)}", f"[{examples}, ...]: one row an example")


def _not_routable(layer: nn.Module, found: str, expected: str) -> UserError:
    path = str(layer.path)
    return UserError(
        "this module cannot be routed", key=path, found=found, expected=expected,
        hint=f"leave it out of the merge: parameters.exclude=['{path.partition('.')[2]}.*']",
    )  # fmt: skip


def _mixed(shared: Tensor, deltas: Tensor | None, weights: Tensor, like: Tensor) -> Tensor:
    """A vector that is shared, or one a row of the batch: shared + Σ_t w_t δ_t."""
    return shared if deltas is None else _spread(shared + weights @ deltas, like)


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """(B, n) with ones in between: (B, 1, ..., n), to meet ``like`` of (B, ..., n)."""
    return values.view(len(values), *[1] * (like.dim() - 2), values.shape[-1])
