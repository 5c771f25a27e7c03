"""A static method over whole encoders, name by name: memory of about T + 2 tensors, whatever the model's size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from twin_merging.checkpoints import check_finite
from twin_merging.errors import UserError
from twin_merging.parameters import task_vectors

Method = Callable[[Tensor, Tensor, Any], Tensor]


def merge(
    method: Method,
    options: Any,
    base: Mapping[str, Tensor],
    experts: Sequence[Mapping[str, Tensor]],
    selected: Sequence[str],
) -> Iterator[tuple[str, Tensor]]:
    """Each of the base's tensors: merged in the base's dtype if ``selected``, else as it is.

    Args:
        method: ``(base, deltas (T, *shape), options) -> merged`` of one parameter.

    Raises:
        UserError: if the method changes a tensor's shape or gives NaN or infinity.
    """
    chosen = set(selected)
    for name, tensor in base.items():
        if name not in chosen or not tensor.is_floating_point():
            yield name, tensor
            continue
        merged = method(tensor, task_vectors(tensor, experts, name), options)
        if merged.shape != tensor.shape:
            raise UserError(
                "the method changed a tensor's shape", key=f"merge_method={options.name}: {name}",
                found=list(merged.shape), expected=list(tensor.shape),
            )  # fmt: skip
        merged = merged.to(tensor.dtype)  # which may overflow, hence before the check
        check_finite(merged, f"merge_method={options.name}: {name}")
        yield name, merged


def modularize(
    sparsify: Callable[[Tensor, Any], Any], options: Any, base: Mapping[str, Tensor], experts: Sequence[Mapping[str, Tensor]],
    shared: Mapping[str, Tensor], selected: Sequence[str],
) -> Iterator[tuple[str, Any]]:  # fmt: skip
    """v_t = sparsify(θ_t − θ_s) of each selected tensor, for all experts at once (paper equation 2)."""
    from twin_merging.merging.twin import exclusive_knowledge

    for name in selected:
        if base[name].is_floating_point():
            deltas = exclusive_knowledge(base[name], task_vectors(base[name], experts, name), shared[name])
            yield name, sparsify(deltas, options)
