"""What all routed layers have in common, and the error of one that is used for something else than a row an example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from twin_merging.dynamic.matrix import RoutedMatrix
from twin_merging.dynamic.mixture import Mixture
from twin_merging.dynamic.plan import Planner
from twin_merging.errors import UserError
from twin_merging.sparsifiers.svd import Factors

Deltas = Mapping[str, Factors | Tensor]
"""v_t by name. What is stored sparsely is routed as dense deltas: it is small on disk and not in memory."""


class NotRoutable(UserError):
    """What is computed is not of single examples, so that it has no weights unless all examples have the same.

    ``TwinMergedModel`` answers such a batch once for each group of examples that have the same weights.
    """


class Routed(nn.Module):
    """A layer of the shared expert, and what its parameters get from the experts.

    Its input has a row for each example, or, where all examples have the same weights, whatever rows.

    Args:
        shared: the layer, with θ_s. Its attributes are the routed layer's too.
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
        self.merges = frozenset(deltas)
        self.prepare(planner, dict(deltas))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            shared = super().__getattr__("shared")
            return self.own_parameter(name) if name in self.merges else getattr(shared, name)

    def prepare(self, planner: Planner, deltas: dict[str, Any]) -> None:
        """Store what the experts know in the form that ``forward`` reads."""
        for name, delta in deltas.items():
            self.register_buffer(_buffer(name), delta)

    def matrix(self, planner: Planner, weight: Factors | Tensor, bias: Tensor | None, name: str = "") -> RoutedMatrix:
        """One of the layer's matrices, (m, n), with the bias that is added to its products."""
        found = RoutedMatrix(self.mixture, planner, weight, bias)
        found.path = f"{self.path}.{name}" if name else self.path
        return found

    def vectors(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, shared expert's value and deltas of each parameter that is stored as ``prepare`` does it here."""
        for name in self.merges:
            deltas = self._buffers.get(_buffer(name))
            if deltas is not None:
                held, last = holder(self.shared, name)
                yield name, held[last], deltas

    def own_vector(self, name: str, shared: Tensor, deltas: Tensor) -> Tensor:
        """p_s + Σ_t w_t δ_t of a parameter, (B, *shape)."""

        def find(weights: Tensor) -> Tensor:
            with torch.autocast(
                weights.device.type, enabled=False
            ):  # which would round the sum, and a norm wants float32
                return mixed_by(weights, deltas).add_(shared).to(shared.dtype)

        return self.mixture.once((self, name), find)

    def own_parameter(self, name: str) -> Tensor:
        """A parameter for code that reads it by itself: all examples' own, or one whose numbers cannot be read."""
        held, last = holder(self.shared, name)
        shared, weights = held[last], self.mixture.weights
        if weights is None or name not in self.merges:
            return shared
        if len(weights) == 1:
            return self.merged(name, shared)
        if torch.compiler.is_compiling():  # which cannot raise; the first batch, which is not compiled, has
            return shared
        return Looked.at(shared, self)

    def merged(self, name: str, shared: Tensor) -> Tensor:
        """p_s + Σ_t w_t δ_t of a parameter where all examples have the same weights."""
        return self.own_vector(name, shared, self.get_buffer(_buffer(name)))[0]

    def check_rows(self, x: Tensor) -> None:
        """Refuse an input whose rows are not the examples, such as relative positions, which have no weights of their own."""
        examples = len(weights_of(self.mixture))
        if x.shape[0] != examples != 1:
            raise not_routable(self, f"an input of {list(x.shape)}", f"[{examples}, ...]: one row an example")


class Looked(Tensor):
    """A parameter that differs from example to example, for code that asks for its dtype, device or shape.

    Raises:
        NotRoutable: if its numbers are asked for.
    """

    layer: Routed

    @classmethod
    def at(cls, shared: Tensor, layer: Routed) -> Tensor:
        looked = shared.detach().as_subclass(cls)
        looked.layer = layer
        return looked

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if getattr(func, "__self__", func) in _ASKED:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        looked = next(x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, cls))
        raise not_routable(looked.layer, "a parameter is read by itself", "products with one row an example")


_ASKED: Any = frozenset((
    Tensor.dtype, Tensor.device, Tensor.shape, Tensor.ndim, Tensor.requires_grad, Tensor.is_cuda, Tensor.is_meta, Tensor.layout,
    Tensor.is_sparse, Tensor.is_quantized, Tensor.itemsize, Tensor.size, Tensor.dim, Tensor.numel, Tensor.element_size,
    Tensor.is_floating_point, Tensor.get_device, Tensor.__len__,
))  # fmt: skip


def not_routable(layer: Routed, found: str, expected: str) -> NotRoutable:
    """The error of a layer that is used in a way that has no routed form."""
    return NotRoutable(
        "this module cannot be routed", key=layer.path, found=found, expected=expected,
        hint="ask with the same weights for all examples, or leave the module out of the merge: "
             f"parameters.exclude=['{layer.path.partition('.')[2]}.*']",
    )  # fmt: skip


def instead_of(module: nn.Module, tensors: Mapping[str, Tensor | None]) -> exchanged:
    """Have a module compute with other tensors, or none, in the place of its own parameters."""
    return exchanged([(*holder(module, name), own) for name, own in tensors.items()])


class exchanged:
    """Have others in the place of parameters, given as (who holds it, its name there, the other).

    No generator: of one token, it would take as long as the layer.
    """

    def __init__(self, places: Sequence[tuple[dict[str, Any], str, Tensor | None]]):
        self.places = places

    def __enter__(self) -> None:
        self.before = [held[last] for held, last, _ in self.places]
        for held, last, own in self.places:
            held[last] = own

    def __exit__(self, *error: object) -> None:
        for (held, last, _), before in zip(self.places, self.before, strict=True):
            held[last] = before


def holder(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """The dictionary that holds a module's parameter or buffer of this name, and its name there."""
    outer, _, last = name.rpartition(".")
    owner = module.get_submodule(outer)
    return (owner._buffers if last in owner._buffers else owner._parameters), last


def weights_of(mixture: Mixture) -> Tensor:
    """w(x) of the batch, (B, T), or (1, T) for all examples."""
    assert mixture.weights is not None
    return mixture.weights


def mixed_by(weights: Tensor, deltas: Tensor) -> Tensor:
    """Σ_t w_t δ_t of small parameters, (B, *shape) or (*shape): in float32 at least, whatever they are stored in, unless autocast rounds."""
    wide = torch.promote_types(torch.promote_types(weights.dtype, deltas.dtype), torch.float32)
    return torch.tensordot(weights.to(wide), deltas.to(wide), 1)


def spread(values: Tensor, like: Tensor) -> Tensor:
    """(B, n) with ones in between: (B, 1, ..., n), to meet ``like`` of (B, ..., n); (1, n) meets any (..., n)."""
    between = [1] * (like.dim() - 2)
    return values.view(-1) if len(values) == 1 else values.view(len(values), *between, values.shape[-1])


def _buffer(name: str) -> str:
    return f"{name}_deltas".replace(".", "/")
