"""What a static merge method is: a function of one parameter, and what has to be known to call it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from twin_merging.merging.stack import Stack


class At(NamedTuple):
    """Where the numbers stand that a method is given, and what was found out about their parameter before.

    Args:
        name: the parameter's.
        start: the position of the first number in the flattened parameter; 0 where it comes whole.
        seed: of whatever is drawn at random.
        statistic: what ``Kind.statistic`` or the pipeline found for this parameter; None if neither did.
    """

    name: str = ""
    start: int = 0
    seed: int = 0
    statistic: Any = None


Function = TypeVar("Function", bound=Callable[..., Any])
Statistic = Callable[["Stack", Any, int], Mapping[str, Any]]
"""(stack, options, seed) -> by parameter name, what the method has to know: a streaming pass before the merge."""


@dataclass(frozen=True)
class Kind:
    """What a method needs and allows.

    Args:
        elementwise: each number merges by itself, so that any flat piece can be handed over: base (n,), stacked (T, n).
        of: ``deltas`` hands over τ_t stacked, ``experts`` θ_t stacked, ``views`` a list of θ_t, which need not be copied.
        random: the result depends on ``At.seed``; None: it may, if the method takes ``at`` or has a ``statistic``.
        linear: the result is θ₀ + λ τ, where λ is ``options.scaling`` and τ does not depend on it.
        statistic: a first pass over all parameters.
        needs: what the pipeline has to compute before: ``fisher``, ``gram`` or ``coefficients`` from data, ``spectra`` of
            exclusive knowledge; None if nothing.
    """

    elementwise: bool = False
    of: str = "deltas"
    random: bool | None = None
    linear: bool = False
    statistic: Statistic | None = None
    needs: str | None = None


def static(**kind: Any) -> Callable[[Function], Function]:
    """Decorator that says what kind of method or sparsifier a function is; without it, it is one of whole tensors."""

    def decorate(method: Function) -> Function:
        method.kind = Kind(**kind)  # type: ignore[attr-defined]
        return method

    return decorate


def kind_of(method: Callable[..., Any]) -> Kind:
    """What the decorator said."""
    return getattr(method, "kind", Kind())


def can_draw(method: Callable[..., Any]) -> bool:
    """Whether a seed may change what a method computes of its inputs, so that those who do not say lose nothing but time."""
    kind = kind_of(method)
    if kind.random is not None:
        return kind.random
    return kind.statistic is not None or "at" in inspect.signature(method).parameters


def bind(method: Callable[..., Tensor], options: Any) -> Callable[[Tensor, Tensor, At], Tensor]:
    """(base, stacked, at) -> merged, whether or not the method takes ``at``."""
    if "at" in inspect.signature(method).parameters:
        return lambda base, stacked, at: method(base, stacked, options, at)
    return lambda base, stacked, at: method(base, stacked, options)
