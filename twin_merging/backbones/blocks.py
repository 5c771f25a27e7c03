"""A model's blocks, one after the other, and what goes into one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class _Reached(Exception):
    """Ends a pass at the block whose input is wanted."""


def blocks_of(model: nn.Module) -> nn.ModuleList | nn.Sequential | None:
    """The list of as many modules as the config says that there are blocks, the outermost; None where there is none.

    timm's models have a sequence in its place, which is called ``blocks``.
    """
    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    for name, module in model.named_modules():
        is_list = isinstance(module, nn.ModuleList) or (
            isinstance(module, nn.Sequential) and name.rpartition(".")[2] == "blocks"
        )
        if is_list and len(module) == count:
            return module  # type: ignore[return-value]
    return None


@contextmanager
def watched_inputs(blocks: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Within, what goes into each of the blocks that are called, (B, S, d), in their order."""
    states: list[Tensor] = []

    def keep(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        states.append(input_of(args, kwargs))

    hooks = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def input_of(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """The token states (B, S, d) among a block's arguments."""
    return args[0] if args else kwargs["hidden_states"]


def states_at(model: nn.Module, layer: int, run: Callable[..., Any]) -> Tensor:
    """``hidden_states[layer]`` of a pass, (B, S, d), without what comes after it.

    The pass ends before block ``layer``, whose input these states are. It is a whole one where no block reads them, as for
    layer −1, or where no list of blocks is found.

    Args:
        model: whose blocks run.
        layer: 0 for what goes into the first block (the embeddings), −1 or the number of blocks for the last states.
        run: starts the pass; it takes ``output_hidden_states`` if it has to be whole.
    """
    blocks = blocks_of(model)
    if blocks is None and layer == -1:
        return run().last_hidden_state
    if blocks is None or not 0 <= layer < len(blocks):
        return run(output_hidden_states=True).hidden_states[layer]
    reached: list[Tensor] = []

    def stop(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        reached.append(input_of(args, kwargs))
        raise _Reached

    hook = blocks[layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        run()
    except _Reached:
        pass
    finally:
        hook.remove()
    return reached[0]
