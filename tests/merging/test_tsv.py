from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix_cases import SHAPES, as_numpy, awkward_cases, random_case
from oracles import tsv as oracle

from twin_merging.config import TsvMerge
from twin_merging.errors import UserError
from twin_merging.merging.apply import merge
from twin_merging.merging.method import At
from twin_merging.merging.tsv import tsv_merge


def merged(base: torch.Tensor, deltas: torch.Tensor, name: str = "a.weight", **options) -> torch.Tensor:
    return tsv_merge(base, deltas.clone(), TsvMerge(**options), At(name))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tasks", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_its_oracle(shape, tasks, dtype):
    base, deltas = (tensor.to(dtype) for tensor in random_case(shape, tasks, seed=sum(shape) + tasks))
    for scaling in (1.0, -0.4):
        fast = merged(base, deltas, scaling=scaling)
        assert fast.dtype == dtype
        slow = oracle.tsv_merge(*as_numpy(base, deltas), scaling)
        np.testing.assert_allclose(fast.double().numpy(), slow, rtol=0, atol=1e-6 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", awkward_cases())
def test_equals_its_oracle_on_awkward_matrices(name, dtype):
    base, deltas = (tensor.to(dtype) for tensor in awkward_cases()[name])
    for start in (base, torch.zeros_like(base)):
        slow = oracle.tsv_merge(*as_numpy(start, deltas), 1.0)
        size = float(max(start.abs().max(), deltas.abs().max())) or 1.0
        digits = 1e-6 if dtype == torch.float64 else 1e-4
        np.testing.assert_allclose(merged(start, deltas).double().numpy(), slow, rtol=0, atol=digits * size)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_expert_is_given_back(shape):
    base, deltas = random_case(shape, 1)
    torch.testing.assert_close(merged(base, deltas), base + deltas[0], rtol=0, atol=1e-6)


def test_equal_experts_are_cut_to_their_share_of_the_components():
    base, deltas = random_case((12, 9), 1)
    U, S, Vh = torch.linalg.svd(deltas[0], full_matrices=False)
    expected = base + U[:, :3] * S[:3] @ Vh[:3]
    torch.testing.assert_close(merged(base, deltas.repeat(3, 1, 1)), expected, rtol=0, atol=1e-6)


def test_tasks_on_orthogonal_subspaces_do_not_disturb_one_another():
    basis = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    deltas = torch.stack([basis[:, :2] @ basis[:2], 3 * basis[:, 2:4] @ basis[2:4]])
    base = torch.zeros(8, 8, dtype=torch.float64)
    torch.testing.assert_close(merged(base, deltas), deltas.sum(0), rtol=0, atol=1e-6)


def test_the_numbers_that_rounding_leaves_in_a_low_rank_expert_do_not_count():
    # θ₀ + BA rounded to float32, less θ₀, has full rank; merging must see the rank of BA
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(64, 48, generator=generator)
    products = 0.02 * torch.randn(4, 64, 2, generator=generator) @ torch.randn(4, 2, 48, generator=generator)
    deltas = (base + products) - base
    assert torch.linalg.matrix_rank(deltas[0].double(), rtol=1e-9) == 48
    slow = oracle.tsv_merge(*as_numpy(base, products), 1.0)
    np.testing.assert_allclose(merged(base, deltas).numpy(), slow, rtol=0, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), tasks=st.integers(1, 6), rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_invariants(seed, tasks, rows, columns):
    base, deltas = random_case((rows, columns), tasks, seed)
    once = merged(base, deltas)
    torch.testing.assert_close(merged(base, deltas.flip(0)), once, rtol=0, atol=1e-6)
    torch.testing.assert_close(merged(base, deltas, scaling=0.0), base, rtol=0, atol=0)
    torch.testing.assert_close(merged(base, deltas, scaling=2.0) - base, 2 * (once - base), rtol=0, atol=1e-9)
    torch.testing.assert_close(merged(base.mT, deltas.mT).mT, once, rtol=0, atol=1e-6)
    torch.testing.assert_close(merged(base, 10 * deltas) - base, 10 * (once - base), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4), (0,), (0, 4), (4, 0)])
def test_what_is_no_matrix_is_averaged(shape):
    base, deltas = random_case(shape, 3)
    torch.testing.assert_close(merged(base, deltas, scaling=0.5), base + 0.5 * deltas.sum(0) / 3)


def test_matrices_are_selected_by_name():
    base, deltas = random_case((5, 4), 2)
    mean = base + deltas.mean(0)
    only = {"matrices": ["(?!.*embed).*"]}
    torch.testing.assert_close(merged(base, deltas, "embeddings.word.weight", **only), mean)
    torch.testing.assert_close(merged(base, deltas, "layer.weight", **only), merged(base, deltas))
    assert not torch.allclose(merged(base, deltas), mean)


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(UserError, match="not a regular expression") as caught:
        merged(*random_case((2, 2), 1), matrices=["("])
    assert caught.value.key == "merge_method.matrices"


def test_bfloat16_is_merged_in_float32():
    base, deltas = random_case((6, 5), 2)
    base = base.bfloat16()
    experts = [(base + delta).bfloat16() for delta in deltas]
    fast = merge(tsv_merge, TsvMerge(), {"w": base}, [{"w": expert} for expert in experts], ["w"])["w"]
    assert fast.dtype == torch.bfloat16
    slow = oracle.tsv_merge(base.double().numpy(), [expert.double().numpy() for expert in experts], 1.0)
    np.testing.assert_allclose(fast.double().numpy(), slow, rtol=2**-8, atol=1e-4)
