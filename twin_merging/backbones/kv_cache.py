"""Keys and values of what was read, in memory that has room for what comes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64


class RoomyLayer(DynamicLayer):
    """A ``DynamicLayer`` that copies what it holds once in ``ROOM`` tokens and not at each, and gives the same.

    ``keys`` and ``values``, (rows, heads, tokens, d), are the beginnings of two buffers until they are replaced, as for fewer rows.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take the keys and values of further tokens and give those of all."""
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        held, new = (self.keys, self.values), (key_states, value_states)
        tokens, whole = held[0].shape[-2], held[0].shape[-2] + new[0].shape[-2]
        if not self._has_room(whole):
            self._buffers = [each.new_empty(*each.shape[:-2], whole + ROOM, each.shape[-1]) for each in held]
            for buffer, each in zip(self._buffers, held, strict=True):
                buffer[..., :tokens, :] = each
        for buffer, each in zip(self._buffers, new, strict=True):
            buffer[..., tokens:whole, :] = each
        self.keys, self.values = (buffer[..., :whole, :] for buffer in self._buffers)
        return self.keys, self.values

    def _has_room(self, tokens: int) -> bool:
        """Whether what is held lies in the buffers still, and so many tokens do."""
        return (
            bool(self._buffers)
            and self._buffers[0].shape[-2] >= tokens
            and self._buffers[0].data_ptr() == self.keys.data_ptr()
            and len(self._buffers[0]) == len(self.keys)
        )


def give_room(cache: Any) -> None:
    """Exchange the layers of transformers' default cache that keep all tokens and are empty still; leave other caches alone."""
    if type(cache) is DynamicCache and not cache.offloading:
        cache.layers = [RoomyLayer() if _is_plain(layer) else layer for layer in cache.layers]


def _is_plain(layer: Any) -> bool:
    return type(layer) is DynamicLayer and not layer.is_initialized
