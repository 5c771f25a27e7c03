"""Sums of low-rank products: the factored route against the dense matrix in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import svd as oracle
from oracles.dynamic import multiplied_out

from twin_merging.sparsifiers.low_rank import svd_of_sums
from twin_merging.sparsifiers.svd import decompose


def adapters(m: int, n: int, ranks: list[int], dtype=torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    left = [torch.randn(m, rank, generator=generator, dtype=torch.float64).to(dtype) for rank in ranks]
    right = [torch.randn(rank, n, generator=generator, dtype=torch.float64).to(dtype) for rank in ranks]
    return left, right


def twin_weights(count: int, scaling: float) -> torch.Tensor:
    """One row λ·1 for the shared delta, then e_t − λ·1 for each v_t."""
    return torch.cat(
        [torch.full((1, count), scaling, dtype=torch.float64), torch.eye(count, dtype=torch.float64) - scaling]
    )


def dense(left, right, weights) -> np.ndarray:
    """Σ_t w_t B_t A_t, one number of the product at a time."""
    total = np.zeros((left[0].shape[0], right[0].shape[1]))
    for B, A, weight in zip(left, right, weights.tolist(), strict=True):
        for k in range(B.shape[1]):
            total += weight * np.outer(B[:, k].double().numpy(), A[k].double().numpy())
    return total


@pytest.mark.parametrize(
    ("m", "n", "ranks"), [(20, 30, [2, 2, 2]), (30, 20, [1, 4]), (9, 7, [5, 5, 5]), (6, 6, [1]), (1, 5, [2, 2])]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_svd_of_the_dense_sum(m, n, ranks, dtype):
    left, right = adapters(m, n, ranks, dtype)
    weights = twin_weights(len(ranks), 0.3)
    for r in (1, 3, 100):
        factors = svd_of_sums(left, right, weights, r)
        assert factors.S.shape == (len(weights), min(r, m, n, sum(ranks)))
        assert {part.dtype for part in factors} == {dtype}
        for row, whole in zip(weights, multiplied_out(factors), strict=True):
            sum_ = dense(left, right, row)
            tolerance = {torch.float64: 1e-11, torch.float32: 1e-5}[dtype] * np.linalg.norm(sum_)
            np.testing.assert_allclose(whole.numpy(), oracle.best_approximation(sum_, min(r, m, n)), atol=tolerance)


def test_equals_twin_on_the_products():
    left, right = adapters(40, 30, [3, 3, 3, 3])
    products = torch.stack([B @ A for B, A in zip(left, right, strict=True)])
    shared = 0.3 * products.sum(0)
    expected = multiplied_out(decompose(products - shared, 5))
    found = multiplied_out(svd_of_sums(left, right, twin_weights(4, 0.3)[1:], 5))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_singular_vectors_are_orthonormal():
    left, right = adapters(25, 35, [2, 3])
    U, S, V = svd_of_sums(left, right, twin_weights(2, 0.4), 5)
    eye = torch.eye(5, dtype=torch.float64).expand(3, 5, 5)
    torch.testing.assert_close(U.mT @ U, eye, rtol=0, atol=1e-10)
    torch.testing.assert_close(V.mT @ V, eye, rtol=0, atol=1e-10)
    assert (S.diff(dim=1) <= 0).all()


def test_adapters_that_were_never_trained_give_zeros():
    left, right = adapters(8, 9, [2, 2])
    factors = svd_of_sums([torch.zeros_like(B) for B in left], right, twin_weights(2, 0.3), 2)
    assert all(torch.isfinite(part).all() for part in factors)
    assert (multiplied_out(factors) == 0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(4)), st.floats(-2, 2))
def test_the_order_of_the_experts_and_a_common_factor_do_not_matter(seed, order, scaling):
    left, right = adapters(12, 10, [1, 2, 3, 1], seed=seed)
    weights = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    whole = multiplied_out(svd_of_sums(left, right, weights, 3))
    moved = svd_of_sums([left[t] for t in order], [right[t] for t in order], scaling * weights[:, list(order)], 3)
    torch.testing.assert_close(multiplied_out(moved), scaling * whole, rtol=0, atol=1e-9)
