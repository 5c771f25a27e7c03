"""Surgery: adapters trained side by side are those trained one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import surgery as oracle

from twin_merging.config import Surgery
from twin_merging.merging.surgery import _uniform, learn, operate, shuffled

ROWS, WIDTH = (20, 33, 5), 6


def case(seed: int = 0):
    """Features of three tasks' rows, the merged encoder's off from the experts' in a way that an adapter can learn."""
    generator = torch.Generator().manual_seed(seed)
    experts = [torch.randn(count, WIDTH, generator=generator) for count in ROWS]
    return [f + 0.5 * torch.randn(WIDTH, generator=generator).abs() for f in experts], experts


def test_it_equals_its_oracle_row_by_row():
    generator = torch.Generator().manual_seed(1)
    features, down, up = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((9, 6), (4, 6), (6, 4)))
    found = operate(features, down, up)
    np.testing.assert_allclose(found.numpy(), oracle.operate(features.numpy(), down.numpy(), up.numpy()), rtol=1e-12)


def test_adapters_are_those_that_each_task_learns_alone():
    merged, experts = case()
    options = Surgery(rank=3, steps=25, lr=0.01, batch_size=8)
    down, up, history = learn(merged, experts, options, seed=4)
    generator = torch.Generator().manual_seed(4)
    first_down, first_up = _uniform((3, 3, WIDTH), WIDTH, generator), _uniform((3, WIDTH, 3), 3, generator)
    streams = [shuffled(count, 8, generator) for count in ROWS]
    batches: list[list] = [[], [], []]
    for _ in range(25):
        for mine, stream in zip(batches, streams, strict=True):
            mine.append(next(stream).tolist())
    losses = []
    for task in range(3):
        wanted = oracle.learn(
            merged[task], experts[task], first_down[task].detach(), first_up[task].detach(), batches[task], 0.01
        )
        torch.testing.assert_close(down[task], wanted[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(up[task], wanted[1], rtol=1e-4, atol=1e-5)
        losses.append(wanted[2])
    np.testing.assert_allclose(history, np.mean(losses, 0), rtol=1e-4)


def test_it_comes_nearer_to_the_experts():
    merged, experts = case(2)
    down, up, history = learn(merged, experts, Surgery(rank=4, steps=400, lr=0.01), seed=0)
    for before, wanted, reduce, expand in zip(merged, experts, down, up, strict=True):
        after = operate(before, reduce, expand)
        assert (after - wanted).abs().mean() < 0.6 * (before - wanted).abs().mean()
    assert history[-1] < 0.6 * history[0]


def test_the_first_weights_are_drawn_as_torch_draws_a_linear_layers():
    for fan_in, shape in ((50, (1, 400, 50)), (8, (1, 400, 8))):
        drawn = _uniform(shape, fan_in, torch.Generator()).detach()
        theirs = torch.nn.Linear(fan_in, 400).weight.detach()
        assert drawn.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.01)
        assert drawn.std().item() == pytest.approx(theirs.std().item(), rel=0.05)


def test_the_seed_makes_it_reproducible():
    merged, experts = case()
    options = Surgery(rank=2, steps=5)
    one, same, other = (learn(merged, experts, options, seed) for seed in (1, 1, 2))
    assert torch.equal(one[0], same[0])
    assert torch.equal(one[1], same[1])
    assert not torch.equal(one[0], other[0])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 1000))
def test_batches_are_of_one_size_and_pass_over_all_rows_alike(count, size, seed):
    stream = shuffled(count, size, torch.Generator().manual_seed(seed))
    rows = torch.cat([next(stream) for _ in range(count)])  # count · size: so many passes
    assert len(rows) == count * size
    assert torch.equal(rows.bincount(minlength=count), torch.full((count,), size))
    for start in range(0, len(rows) - count + 1, count):
        assert sorted(rows[start : start + count].tolist()) == list(range(count))
