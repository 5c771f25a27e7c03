"""Fisher merging against its oracle; the weights themselves are tested with the backbones' statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import fisher as oracle

from twin_merging.config import Fisher
from twin_merging.merging.apply import merge
from twin_merging.merging.fisher import fisher
from twin_merging.merging.method import kind_of

SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4), (0,)]


def random_case(seed: int, dtype: torch.dtype = torch.float64):
    """A base, one to four experts, and their F: some 0, some below the floor, some huge."""
    generator = torch.Generator().manual_seed(seed)
    base = {f"p{i}": torch.randn(shape, generator=generator).to(dtype) for i, shape in enumerate(SHAPES)}
    experts = [
        {name: torch.randn(x.shape, generator=generator).to(dtype) for name, x in base.items()}
        for _ in range(1 + seed % 4)
    ]
    fishers = {
        name: 10.0 ** torch.randint(-9, 3, (len(experts), *x.shape), generator=generator).float()
        * torch.randint(0, 2, (len(experts), *x.shape), generator=generator)
        for name, x in base.items()
    }  # fmt: skip
    return base, experts, fishers


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(8))
def test_it_equals_its_oracle(seed, dtype):
    base, experts, fishers = random_case(seed, dtype)
    found = merge(fisher, Fisher(), base, experts, list(base), statistics=fishers)
    digits = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7}[dtype]
    for name in base:
        expected = oracle.fisher(
            [expert[name].double().numpy() for expert in experts], list(fishers[name].double().numpy()), 1e-6
        )
        assert found[name].dtype == dtype
        np.testing.assert_allclose(found[name].double().numpy(), expected, rtol=digits, atol=4 * digits)


def test_where_no_answer_depends_on_it_an_entry_is_averaged():
    base, experts, fishers = random_case(3)
    found = merge(fisher, Fisher(), base, experts, list(base), statistics={n: 0 * f for n, f in fishers.items()})
    for name in base:
        torch.testing.assert_close(found[name], torch.stack([expert[name] for expert in experts]).mean(0))


def test_the_weights_are_left_as_they_are():
    base, experts, fishers = random_case(2, torch.float32)
    before = {name: values.clone() for name, values in fishers.items()}
    merge(fisher, Fisher(floor=1.0), base, experts, list(base), statistics=fishers)
    assert all(torch.equal(fishers[name], before[name]) for name in before)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_order_does_not_matter_nor_does_a_common_factor_and_it_lies_between_the_experts(seed):
    base, experts, fishers = random_case(seed)
    found = merge(fisher, Fisher(floor=1e-12), base, experts, list(base), statistics=fishers)
    turned = merge(
        fisher,
        Fisher(floor=1e-12),
        base,
        experts[::-1],
        list(base),
        statistics={n: f.flip(0) for n, f in fishers.items()},
    )
    scaled = merge(
        fisher, Fisher(floor=8e-12), base, experts, list(base), statistics={n: 8 * f for n, f in fishers.items()}
    )
    for name in base:
        torch.testing.assert_close(turned[name], found[name])
        torch.testing.assert_close(scaled[name], found[name])
        stacked = torch.stack([expert[name] for expert in experts])
        assert (found[name] <= stacked.amax(0) + 1e-12).all()
        assert (found[name] >= stacked.amin(0) - 1e-12).all()


def test_it_says_what_it_needs():
    assert kind_of(fisher).needs == Fisher.needs == "fisher"
