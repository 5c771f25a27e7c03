"""What a routed pass takes up beside the static one, counted as torch's allocator gives and takes back."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertModel

from twin_merging.config import Exact
from twin_merging.dynamic.kernels import block
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.sparsifiers.svd import Factors

B, S, T, RANK, WIDTH, WIDE, LAYERS = 4, 64, 8, 16, 768, 3072, 3
BYTES, MB = 4, 10**6
OWN_VECTORS = BYTES * B * (5 + LAYERS * 2 * 2) * WIDTH
"""Gains and shifts of the layer norms that each example has for itself, which stay for the batch."""


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=100, hidden_size=WIDTH, intermediate_size=WIDE, num_hidden_layers=LAYERS)
    return BertModel(config, add_pooling_layer=False).eval()


@pytest.fixture(scope="module")
def factors(encoder) -> dict:
    found: dict = {}
    for name, parameter in encoder.named_parameters():
        if parameter.dim() == 2:
            m, n = parameter.shape
            found[name] = Factors(torch.randn(T, m, RANK), torch.full((T, RANK), 1e-3), torch.randn(T, n, RANK))
        else:
            found[name] = 0.01 * torch.randn(T, *parameter.shape)
    return found


def measured(run: Callable[[], object]) -> tuple[int, int]:
    """Bytes at the highest point of a pass, and what is left of them when its output is forgotten."""
    gc.collect()  # so that nothing from before is given back meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    taken = list(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    return max(taken), taken[-1]


def passes(encoder: nn.Module, factors: dict, options: Exact) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """A static pass and three routed ones."""
    ids, weights = torch.randint(100, (B, S)), torch.randn(B, T).softmax(-1)
    twin = TwinMergedModel(copy.deepcopy(encoder), factors, options)
    twin.planner.speeds_of("cpu", BYTES)  # which takes up a lot when this machine's are not known
    with torch.no_grad():
        return measured(lambda: encoder(ids)), [measured(lambda: twin(ids, weights=weights)) for _ in range(3)]


def test_the_factored_plan_takes_one_layers_inner_products(encoder, factors):
    (static, _), routed = passes(encoder, factors, Exact(plan="factored", memory="1KB"))
    chunk = BYTES * B * S * (T * RANK + T)  # g ⊙ Vᵀx and w of all tokens
    for peak, left in routed:
        assert static < peak <= static + chunk + OWN_VECTORS
        assert left == 0


def dense_chunk(n: int, m: int) -> int:
    """Dense deltas of one layer, the matrices of some rows and examples, and their products beside those before them."""
    rows, examples = block("stock", n)
    return BYTES * (T * m * n + min(B, examples) * rows * (n + 2 * S))


def test_dense_deltas_without_room_are_forgotten(encoder, factors):
    (static, _), routed = passes(encoder, factors, Exact(plan="dense", kernels="stock", memory="1KB"))
    for peak, left in routed:
        assert BYTES * T * WIDE * WIDTH < peak <= static + dense_chunk(WIDE, WIDTH) + OWN_VECTORS
        assert left == 0


@pytest.mark.parametrize(("memory", "kept"), [(20, 1), (100, 5)])
def test_dense_deltas_stay_within_the_memory_that_they_are_given(encoder, factors, memory, kept):
    # those of a matrix of 768 x 768 take up 18.9 MB: the first ones that there is room for stay
    (static, _), routed = passes(encoder, factors, Exact(plan="dense", kernels="stock", memory=f"{memory}MB"))
    held = [left for _, left in routed]
    assert held == [kept * BYTES * T * WIDTH * WIDTH, 0, 0]  # by the first pass, and nothing more by others
    assert sum(held) <= memory * MB
    assert routed[0][0] <= static + held[0] + dense_chunk(WIDE, WIDTH) + OWN_VECTORS
