"""A static method over whole encoders, parameter by parameter, in memory that the model's size does not change."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from twin_merging.checkpoints import check_finite
from twin_merging.errors import UserError
from twin_merging.merging.method import At, bind, kind_of
from twin_merging.merging.stack import Stack, in_parallel

Method = Callable[..., Tensor]
Write = Callable[[str, int, Tensor], None]
"""(name, start, piece): numbers of a parameter from ``start`` on, flattened, in the parameter's dtype."""
Keep = Callable[[str, Any], None]
"""(name, kept): a parameter's compressed exclusive knowledge."""


def merge(
    method: Method, options: Any, base: Mapping[str, Tensor], experts: Sequence[Mapping[str, Tensor]],
    selected: Sequence[str], *, seed: int = 0, statistics: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Each of the base's tensors: merged in the base's dtype if ``selected``, else as it is. See ``merge_into``."""
    stack = Stack(base, experts, selected)
    merged = {name: torch.empty_like(base[name]) if name in stack.names else base[name] for name in base}

    def write(name: str, start: int, piece: Tensor) -> None:
        merged[name].view(-1)[start : start + len(piece)] = piece

    merge_into(write, method, options, stack, seed=seed, statistics=statistics)
    return merged


def merge_into(
    write: Write, method: Method, options: Any, stack: Stack, *, seed: int = 0,
    statistics: Mapping[str, Any] | None = None, names: Sequence[str] | None = None, dtype: torch.dtype | None = None,
) -> None:  # fmt: skip
    """Merge a stack's parameters and hand the result over as it comes, in no set order, from several threads.

    An elementwise method reads pieces that fit the cache; another one whole tensors, of which so many are in flight as
    together take no more memory than the largest (or than 8 Mi numbers): about (T + 2) times its size.

    Args:
        method: ``(base, stacked, options) -> merged`` of one parameter, or ``(base, stacked, options, at)``; its
            ``Kind`` says what it is given.
        statistics: by name, what a method that needs data has to know (``Kind.needs``).
        names: of these parameters only.
        dtype: of the result; each parameter's own without it.

    Raises:
        UserError: if the method changes a tensor's shape or gives NaN or infinity.
    """
    kind = kind_of(method)
    if kind.statistic is not None:
        statistics = kind.statistic(stack, options, seed)
    known: Mapping[str, Any] = statistics or {}
    merged_by, label = bind(method, options), f"merge_method={options.name}"
    names = stack.names if names is None else list(names)

    def by_pieces(name: str, first: int, last: int) -> None:
        given, statistic = dtype or stack.base[name].dtype, known.get(name)
        for start, base, stacked in stack.pieces(name, first, last, kind.of):
            merged = merged_by(base, stacked, At(name, start, seed, statistic))
            write(name, start, _checked(merged, base, given, name))

    def by_tensor(name: str) -> None:
        base, stacked = stack.whole(name, kind.of)
        merged = merged_by(base, stacked, At(name, 0, seed, known.get(name)))
        write(name, 0, _checked(merged, base, dtype or stack.base[name].dtype, name).flatten())

    def _checked(merged: Tensor, base: Tensor, wanted: torch.dtype, name: str) -> Tensor:
        if merged.shape != base.shape:
            raise UserError(
                "the method changed a tensor's shape", key=f"{label}: {name}",
                found=list(merged.shape), expected=list(base.shape),
            )  # fmt: skip
        merged = merged.to(wanted)  # which may overflow, hence before the check
        check_finite(merged, f"{label}: {name}")
        return merged

    if kind.elementwise:
        jobs = in_parallel(
            by_pieces, list(stack.turns(names)), f"merge by {options.name}", amount=lambda name, first, last: last - first
        )  # fmt: skip
    else:
        jobs = in_parallel(by_tensor, [(name,) for name in names], f"merge by {options.name}", cost=stack.size)
    for _ in jobs:
        pass


def modularize(
    keep: Keep, sparsify: Callable[..., Any], options: Any, exclusive: Stack, *, seed: int = 0,
    statistics: Mapping[str, Any] | None = None, names: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """v_t = sparsify(θ_t − θ_s) of each parameter, for all experts at once (paper equation 2), handed over as it comes.

    As many parameters are in flight as together take no more memory than the largest (or than 8 Mi numbers).

    Args:
        keep: takes a parameter's name and what its ``sparsify`` gave, in no set order, from several threads.
        sparsify: ``(deltas, options) -> kept``, or ``(deltas, options, at)``; its ``Kind`` says what it is given.
        exclusive: see ``exclusive_knowledge``.
        statistics: by name, what a sparsifier has to know that is found before (``Kind.needs``).
        names: of these parameters only.

    Raises:
        UserError: if v_t holds NaN or infinity.
    """
    kind = kind_of(sparsify)
    names = exclusive.names if names is None else list(names)
    if kind.statistic is not None and names:
        statistics = kind.statistic(exclusive, options, seed)
    known: Mapping[str, Any] = statistics or {}
    takes_at = "at" in inspect.signature(sparsify).parameters

    def by_tensor(name: str) -> None:
        _, deltas = exclusive.whole(name)
        check_finite(deltas, f"exclusive knowledge: {name}")
        keep(name, sparsify(deltas, options, *([At(name, 0, seed, known.get(name))] if takes_at else [])))

    jobs = [(name,) for name in names]
    for _ in in_parallel(by_tensor, jobs, "compress exclusive knowledge", cost=exclusive.size):
        pass
