"""Any module or a whole model, routed by running its own code once for each group of examples that have the same weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from transformers import Cache

from twin_merging.dynamic.plan import Planner
from twin_merging.dynamic.routed import NotRoutable, Routed, instead_of, weights_of

log = logging.getLogger("twin_merging")
Arguments = tuple[tuple, dict[str, Any]]


class RoutedByExample(Routed):
    """A module without a form of its own: p_s + Σ_t w_t δ_t is made for one group of examples after the other.

    Modules inside it that are routed themselves take the same examples' weights. Tensors among its arguments whose first
    dimension is the batch's are split, and its outputs are joined along theirs.
    """

    def prepare(self, planner: Planner, deltas: dict[str, Any]) -> None:
        super().prepare(planner, deltas)
        self._split: dict[int, bool] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.mixture.weights is None:
            return self.shared(*args, **kwargs)

        def run(examples: Tensor, some: Arguments) -> Any:
            with self.mixture.only(examples[:1]):
                own = {name: self.own_vector(name, shared, deltas)[0] for name, shared, deltas in self.vectors()}
                with instead_of(self.shared, own):
                    return self.shared(*some[0], **some[1])

        weights = weights_of(self.mixture)
        if len(weights) > 1:
            self._check_same_arguments_split((args, kwargs), len(weights))
        return each_group(self.path, weights, (args, kwargs), run)

    def _check_same_arguments_split(self, given: Arguments, batch: int) -> None:
        """Refuse an argument that had not a row for each example in a batch before: now it has as many by chance."""
        for place, x in enumerate(pytree.tree_leaves(given)):
            rows = _is_rows(x, batch)
            if isinstance(x, Tensor) and self._split.setdefault(place, rows) != rows:
                raise _no_rows(self.path, f"an argument of {list(x.shape)}, unlike before,", batch)


class WholeModel:
    """Answers a batch in one pass, or once for each group from when a layer has been found that needs it.

    Such a layer is applied to something else than a row an example, as relative positions are. Inside a group all examples
    have the same weights, and the layer has them whatever it is applied to.

    Args:
        path: what the model is called.
    """

    def __init__(self, path: str):
        self.path, self.grouped, self._tried, self._passed = path, False, False, False

    def __call__(self, weights: Tensor | None, given: Arguments, run: Callable[[Tensor | None, Arguments], Any]) -> Any:
        """``run(weights, arguments)`` of the batch, or joined of its groups, whose weights are (1, T)."""
        if weights is None or len(weights) == 1:
            return run(weights, given)
        if not self._passed and torch.compiler.is_compiling():  # which could not catch what the first batch may raise
            return torch.compiler.disable(self)(weights, given, run)
        if not self.grouped:
            try:
                self._try(weights, given, run)
                output, self._passed = run(weights, given), True
                return output
            except NotRoutable as error:
                _refuse_caches(self.path, given)
                self.grouped = self._passed = True
                log.warning(
                    "  %s has no routed form for %s: the whole model runs once for each example's weights, which is slow",
                    error.key, error.found,
                )  # fmt: skip
        return each_group(self.path, weights, given, lambda some, rows: run(weights[some[:1]], rows))

    def _try(self, weights: Tensor, given: Arguments, run: Callable[[Tensor | None, Arguments], Any]) -> None:
        """Before a batch of as many examples as, say, tokens, run another number once, so that they are told apart."""
        if self._tried or _caches(given):
            return
        sizes = {size for x in pytree.tree_leaves(given) if isinstance(x, Tensor) for size in x.shape[1:]}
        if len(weights) not in sizes:
            return
        other = (weights != weights[0]).any(1).nonzero().flatten()[:1]
        if not len(other):
            return
        some = torch.cat([torch.zeros_like(other), *[other] * (2 if len(weights) == 2 else 1)])
        run(weights[some], _rows(given, some, len(weights)))
        self._tried = True


def each_group(path: str, weights: Tensor, given: Arguments, run: Callable[[Tensor, Arguments], Any]) -> Any:
    """``run(examples, arguments of them)`` once for each group of examples that have the same weights, joined in their order.

    Raises:
        NotRoutable: if no argument, or not each output, has a row for each example.
        UserError: if a cache is among the arguments, which has all examples' states in it.
    """
    distinct, group = torch.unique(weights, dim=0, return_inverse=True)
    if len(distinct) == 1:
        return run(torch.zeros_like(group), given)
    _refuse_caches(path, given)
    if not any(_is_rows(x, len(weights)) for x in pytree.tree_leaves(given)):
        raise _no_rows(path, "no argument of so many rows", len(weights))
    members = [(group == number).nonzero().flatten() for number in range(len(distinct))]
    outputs = [run(examples, _rows(given, examples, len(weights))) for examples in members]
    return _joined(path, outputs, members)


def warn(path: str, kind: str) -> None:
    """Say which module has no routed form of its own."""
    log.warning(
        "  %s (%s) has no routed form: its code runs once for each example's weights, which is slow", path, kind
    )


def _is_rows(x: Any, batch: int) -> bool:
    return isinstance(x, Tensor) and x.dim() > 0 and len(x) == batch


def _rows(given: Arguments, examples: Tensor, batch: int) -> Arguments:
    return pytree.tree_map(lambda x: x[examples] if _is_rows(x, batch) else x, given)


def _joined(path: str, outputs: list[Any], members: list[Tensor]) -> Any:
    """Outputs of groups of examples, in the examples' order; what is the same in all groups stays as it is."""
    order = torch.cat(members).argsort()
    flat = [pytree.tree_flatten(output) for output in outputs]
    whole: list[Any] = []
    for each in zip(*(leaves for leaves, _ in flat), strict=True):
        if not isinstance(each[0], Tensor):
            whole.append(None if isinstance(each[0], Cache) else each[0])
        elif all(_is_rows(x, len(examples)) for x, examples in zip(each, members, strict=True)):
            whole.append(torch.cat(each)[order])
        elif all(torch.equal(x, each[0]) for x in each):
            whole.append(each[0])
        else:
            raise _no_rows(path, f"an output of {list(each[0].shape)}, such as a loss", len(order))
    return pytree.tree_unflatten(whole, flat[0][1])


def _no_rows(path: str, what: str, batch: int) -> NotRoutable:
    return NotRoutable(
        "this module cannot run by example", key=path, found=what,
        expected=f"one row for each of the {batch} examples that have weights", hint="give as many weights as inputs, and no labels",
    )  # fmt: skip


def _caches(given: Arguments) -> bool:
    return any(isinstance(x, Cache) for x in pytree.tree_leaves(given, is_leaf=lambda x: isinstance(x, Cache)))


def _refuse_caches(path: str, given: Arguments) -> None:
    if _caches(given):
        raise NotRoutable(
            "this module runs once for each example's weights, between which a cache of all examples cannot be divided", key=path,
            found="a cache", expected="none, or the same weights for all examples",
            hint="generate for prompts of the same weights at a time, or with use_cache=False",
        )  # fmt: skip
