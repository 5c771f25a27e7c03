from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix_cases import SHAPES, as_numpy, awkward_cases, random_case
from oracles import iso as oracle
from scipy.linalg import polar

from twin_merging.config import IsoC
from twin_merging.merging.apply import merge
from twin_merging.merging.iso import iso_c
from twin_merging.merging.method import At


def merged(base: torch.Tensor, deltas: torch.Tensor, name: str = "a.weight", **options) -> torch.Tensor:
    return iso_c(base, deltas.clone(), IsoC(**options), At(name))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tasks", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_its_oracle(shape, tasks, dtype):
    base, deltas = (tensor.to(dtype) for tensor in random_case(shape, tasks, seed=sum(shape) + tasks))
    for scaling in (1.0, -0.4):
        fast = merged(base, deltas, scaling=scaling)
        assert fast.dtype == dtype
        slow = oracle.iso_c(*as_numpy(base, deltas), scaling)
        np.testing.assert_allclose(fast.double().numpy(), slow, rtol=0, atol=1e-7 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", awkward_cases())
def test_equals_its_oracle_on_awkward_matrices(name, dtype):
    base, deltas = (tensor.to(dtype) for tensor in awkward_cases()[name])
    for start in (base, torch.zeros_like(base)):
        slow = oracle.iso_c(*as_numpy(start, deltas), 1.0)
        size = float(max(start.abs().max(), deltas.abs().max())) or 1.0
        digits = 1e-6 if dtype == torch.float64 else 1e-4
        np.testing.assert_allclose(merged(start, deltas).double().numpy(), slow, rtol=0, atol=digits * size)


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (24, 10)])
def test_it_is_the_orthogonal_factor_of_the_sum_at_its_mean_singular_value(shape):
    base, deltas = random_case(shape, 3)
    total = deltas.sum(0).numpy()
    rotation, stretch = polar(total, side="right" if shape[0] >= shape[1] else "left")
    expected = np.trace(stretch) / min(shape) * rotation
    np.testing.assert_allclose((merged(base, deltas) - base).numpy(), expected, rtol=0, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), tasks=st.integers(1, 6), rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_invariants(seed, tasks, rows, columns):
    base, deltas = random_case((rows, columns), tasks, seed)
    once = merged(base, deltas)
    spectrum, before = (torch.linalg.svdvals(matrix) for matrix in (once - base, deltas.sum(0)))
    torch.testing.assert_close(spectrum, before.mean().expand_as(spectrum), rtol=1e-6, atol=0)
    torch.testing.assert_close(merged(base, deltas.flip(0)), once, rtol=0, atol=1e-6)
    torch.testing.assert_close(merged(base, deltas, scaling=0.0), base, rtol=0, atol=0)
    torch.testing.assert_close(merged(base, deltas, scaling=2.0) - base, 2 * (once - base), rtol=0, atol=1e-9)
    torch.testing.assert_close(merged(base.mT, deltas.mT).mT, once, rtol=0, atol=1e-6)


def test_the_numbers_that_rounding_leaves_in_low_rank_experts_do_not_count():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(64, 48, generator=generator)
    products = 0.02 * torch.randn(4, 64, 2, generator=generator) @ torch.randn(4, 2, 48, generator=generator)
    fast = merged(base, (base + products) - base)
    assert torch.linalg.matrix_rank((fast - base).double(), rtol=1e-3) == 8
    np.testing.assert_allclose(fast.numpy(), oracle.iso_c(*as_numpy(base, products), 1.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4), (0,), (0, 4), (4, 0)])
def test_what_is_no_matrix_is_averaged(shape):
    base, deltas = random_case(shape, 3)
    torch.testing.assert_close(merged(base, deltas, scaling=0.5), base + 0.5 * deltas.sum(0) / 3)


def test_matrices_are_selected_by_name():
    base, deltas = random_case((5, 4), 2)
    only = {"matrices": ["(?!.*embed).*"]}
    torch.testing.assert_close(merged(base, deltas, "embeddings.word.weight", **only), base + deltas.mean(0))
    torch.testing.assert_close(merged(base, deltas, "layer.weight", **only), merged(base, deltas))


def test_bfloat16_is_merged_in_float32():
    base, deltas = random_case((6, 5), 2)
    base = base.bfloat16()
    experts = [(base + delta).bfloat16() for delta in deltas]
    fast = merge(iso_c, IsoC(), {"w": base}, [{"w": expert} for expert in experts], ["w"])["w"]
    slow = oracle.iso_c(base.double().numpy(), [expert.double().numpy() for expert in experts], 1.0)
    np.testing.assert_allclose(fast.double().numpy(), slow, rtol=2**-8, atol=1e-4)


def test_weak_directions_are_as_exact_as_strong_ones():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(40, 40, generator=generator).double())[0] for _ in range(2))
    strengths = torch.logspace(0, -4, 40, dtype=torch.float64)
    deltas = ((left * strengths) @ right.mT).float().unsqueeze(0)
    base = torch.zeros(40, 40)
    U, S, Vh = torch.linalg.svd(deltas[0].double())
    torch.testing.assert_close(merged(base, deltas).double(), S.mean() * U @ Vh, rtol=0, atol=1e-7)
