"""Rows in batches that take the least time, padding and the pass itself included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twin_merging.backbones.lengths import TOKENS_OF_A_PASS, by_length

CPU = torch.device("cpu")


def cost(batches: list[list[int]], lengths: list[int]) -> int:
    return sum(TOKENS_OF_A_PASS["cpu"] + len(batch) * max(lengths[row] for row in batch) for batch in batches)


def every_way(rows: list[int], most: int):
    """All ways to put rows, in any company, into batches."""
    if not rows:
        yield []
        return
    first, *others = rows
    for chosen in range(2 ** len(others)):
        batch = [first, *(row for place, row in enumerate(others) if chosen >> place & 1)]
        if len(batch) <= most:
            for left in every_way([row for row in others if row not in batch], most):
                yield [batch, *left]


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 300), max_size=7), most=st.integers(1, 8))
def test_no_other_batches_take_less(lengths, most):
    batches = by_length(lengths, most, CPU)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert max(map(len, batches), default=0) <= most
    assert cost(batches, lengths) == min(cost(way, lengths) for way in every_way(list(range(len(lengths))), most))
    in_order = [lengths[row] for batch in batches for row in batch]
    assert in_order == sorted(lengths, reverse=True)


@pytest.mark.parametrize(("device", "expected"), [("cpu", [[1], [3, 0, 2]]), ("cuda", [[1, 3, 0, 2]])])
def test_a_device_that_computes_faster_pads_more(device, expected):
    assert by_length([40, 300, 39, 41], 8, torch.device(device)) == expected
