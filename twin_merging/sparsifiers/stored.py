"""Exclusive knowledge as it lies in a file: ``NAME.FIELD`` of factors and sparse numbers, ``NAME`` of what is kept whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from twin_merging.sparsifiers.sparse import Sparse, dense
from twin_merging.sparsifiers.svd import Factors

Delta = Factors | Sparse | Tensor
"""Exclusive knowledge of one parameter for all T experts: factors of (T, m, n), what is left of (T, *shape), or all of it."""


def multiplied_out(delta: Delta) -> Tensor:
    """The dense tensors, (T, *shape), for what cannot do without them: of factors U S Vᵀ."""
    if isinstance(delta, Factors):
        return (delta.U * delta.S.unsqueeze(1)) @ delta.V.mT
    return dense(delta) if isinstance(delta, Sparse) else delta


def weighted_sum(weights: Tensor, delta: Delta) -> Tensor:
    """Σ_t w_t Δ_t, of the parameter's shape; of factors one product, [w_t U_t S_t]·[V_t]ᵀ, without any Δ_t.

    Args:
        weights: (T).
        delta: of all T experts.
    """
    if isinstance(delta, Factors):
        U = delta.U * (weights.to(delta.S).unsqueeze(1) * delta.S).unsqueeze(1)
        return U.transpose(0, 1).flatten(1) @ delta.V.transpose(0, 1).flatten(1).mT
    whole = multiplied_out(delta)
    return torch.tensordot(weights.to(whole), whole, 1)


def tensors_of(name: str, kept: Any) -> dict[str, Tensor]:
    """What is stored of one parameter; nothing of a matrix that keeps no triplet."""
    if isinstance(kept, Tensor):
        return {name: kept}
    if isinstance(kept, Factors) and not kept.S.numel():
        return {}
    return {f"{name}.{field}": part for field, part in kept._asdict().items()}


def read_back(stored: Mapping[str, Tensor]) -> dict[str, Delta]:
    """What the tensors of a file were made of, by parameter."""
    fields: dict[str, dict[str, str]] = {}
    for name in stored:
        owner, _, field = name.rpartition(".")
        fields.setdefault(owner, {})[field] = name
    kept: dict[str, Delta] = {}
    for owner, names in fields.items():
        kind = next((kind for kind in (Factors, Sparse) if set(names) == set(kind._fields)), None)
        read = {field: stored[name] for field, name in names.items()}
        kept |= {owner: kind(**read)} if kind else {names[field]: whole for field, whole in read.items()}
    return kept
