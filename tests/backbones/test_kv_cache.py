"""A cache with room holds what transformers' own holds, whatever is done to its rows, and copies it seldom."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, MistralConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from twin_merging.backbones.kv_cache import ROOM, RoomyLayer, give_room


def states(rows: int, tokens: int, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 2, tokens, 4, generator=chance), torch.randn(rows, 2, tokens, 3, generator=chance)


@pytest.mark.parametrize("inference", [True, False])
def test_it_holds_what_a_plain_layer_holds(inference):
    chance, own, plain, rows = torch.Generator().manual_seed(0), RoomyLayer(), DynamicLayer(), 1

    def read(tokens: int) -> None:
        new = states(rows, tokens, chance)
        for found, wanted in zip(own.update(*new), plain.update(*new), strict=True):
            assert torch.equal(found, wanted)
        assert own.get_seq_length() == plain.get_seq_length()
        assert own.get_mask_sizes(1) == plain.get_mask_sizes(1)

    with torch.inference_mode(inference):
        read(5)
        read(1)
        for layer in (own, plain):
            layer.batch_repeat_interleave(6)
        rows = 6
        for tokens in (3, *[1] * (2 * ROOM)):
            read(tokens)
        for stay in ([5, 4, 3, 2, 1, 0], [0, 3, 4, 5], [0, 1], [1]):
            for layer in (own, plain):
                layer.batch_select_indices(torch.tensor(stay))
            rows = len(stay)
            for _ in range(ROOM + 2):
                read(1)
        for layer in (own, plain):
            layer.reset()
        read(2)


def test_what_it_holds_stays_where_it_is_while_there_is_room():
    chance, layer = torch.Generator().manual_seed(0), RoomyLayer()
    layer.update(*states(2, 7, chance))
    places = []
    for _ in range(3 * ROOM):
        keys, values = layer.update(*states(2, 1, chance))
        places.append((keys.data_ptr(), values.data_ptr()))
    assert len(dict.fromkeys(places)) <= 4


def test_rows_that_are_taken_from_a_cache_are_not_written_into_by_the_rest():
    """The first row alone begins at the same address."""
    chance, layer = torch.Generator().manual_seed(0), RoomyLayer()
    layer.update(*states(3, 4, chance))
    layer.keys, layer.values = layer.keys[:1], layer.values[:1]
    keys, values = layer.update(*states(1, 1, chance))
    assert keys.shape == (1, 2, 5, 4)
    assert values.shape == (1, 2, 5, 3)


def test_only_layers_that_keep_all_tokens_are_exchanged():
    size = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 3}
    cache = DynamicCache(config=LlamaConfig(**size))
    give_room(cache)
    assert [type(layer) for layer in cache.layers] == [RoomyLayer] * 3
    sliding = DynamicCache(config=MistralConfig(**size, sliding_window=4))
    give_room(sliding)
    assert [type(layer) for layer in sliding.layers] == [DynamicSlidingWindowLayer] * 3
    used = DynamicCache(config=LlamaConfig(**size))
    used.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4), 0)
    give_room(used)
    assert type(used.layers[0]) is DynamicLayer
    give_room(None)
