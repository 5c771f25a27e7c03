"""Any module, routed by running its own code once for each group of examples that have the same weights."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from twin_merging.dynamic.layers import RoutedWhole, instead_of, weights_of

log = logging.getLogger("twin_merging")


class RoutedByExample(RoutedWhole):
    """A module without a form of its own: p_s + Σ_t w_t δ_t is made for one example after the other, or for those alike.

    Modules inside it that are routed themselves take the same examples' weights. Tensors among its arguments whose first
    dimension is the batch's are split, and its outputs are joined along theirs.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.mixture.weights is None:
            return self.shared(*args, **kwargs)
        weights = weights_of(self.mixture)
        distinct, group = torch.unique(weights, dim=0, return_inverse=True)
        outputs, members = [], []
        for number, w in enumerate(distinct):
            examples = (group == number).nonzero().flatten()
            own = {name: shared + torch.tensordot(w, deltas, 1) for name, shared, deltas in self.vectors()}
            some_args, some_kwargs = _rows((args, kwargs), examples, len(weights))
            with self.mixture.only(examples), instead_of(self.shared, own):
                outputs.append(self.shared(*some_args, **some_kwargs))
            members.append(examples)
        return _joined(outputs, torch.cat(members).argsort())


def warn(path: str, kind: str) -> None:
    """Say which module has no routed form of its own."""
    log.warning(
        "  %s (%s) has no routed form: its code runs once for each example's weights, which is slow", path, kind
    )


def _rows(arguments: Any, examples: Tensor, batch: int) -> Any:
    return pytree.tree_map(
        lambda x: x[examples] if isinstance(x, Tensor) and x.dim() and len(x) == batch else x, arguments
    )


def _joined(outputs: list[Any], order: Tensor) -> Any:
    flat = [pytree.tree_flatten(output) for output in outputs]
    parts = zip(*(leaves for leaves, _ in flat), strict=True)
    whole = [torch.cat(each)[order] if isinstance(each[0], Tensor) and each[0].dim() else each[0] for each in parts]
    return pytree.tree_unflatten(whole, flat[0][1])
