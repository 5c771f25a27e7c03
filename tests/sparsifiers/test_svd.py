from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import svd as oracle
from oracles.dynamic import multiplied_out

from twin_merging.config import Svd
from twin_merging.merging.method import At
from twin_merging.sparsifiers.none import keep
from twin_merging.sparsifiers.spectrum import spectrum
from twin_merging.sparsifiers.svd import Factors, decompose, truncate

SHAPES = [(6, 6), (4, 9), (9, 4), (1, 5), (5, 1), (1, 1), (40, 12), (12, 40)]


def random_matrices(shape: tuple[int, int], seed: int = 0, tasks: int = 3, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(tasks, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def error(matrix: torch.Tensor, approximation: torch.Tensor) -> float:
    return float((matrix.double() - approximation).norm())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_is_the_tail_of_the_singular_values(shape, dtype):
    matrices = random_matrices(shape, seed=sum(shape), dtype=dtype)
    for r in range(1, min(shape)):
        whole = multiplied_out(decompose(matrices, r))
        for matrix, approximation in zip(matrices, whole, strict=True):
            expected = oracle.tail(matrix.numpy(), r)
            assert error(matrix, approximation) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_best_approximation(shape):
    matrices = random_matrices(shape, seed=7)
    for r in range(1, min(shape) + 1):
        whole = multiplied_out(decompose(matrices, r))
        for matrix, approximation in zip(matrices, whole, strict=True):
            np.testing.assert_allclose(approximation.numpy(), oracle.best_approximation(matrix.numpy(), r), atol=1e-9)
            U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
            torch.testing.assert_close(approximation, U[:, :r] * S[:r] @ Vh[:r], rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_is_exact(shape):
    matrices = random_matrices(shape, dtype=torch.float32)
    whole = multiplied_out(decompose(matrices, min(shape)))
    torch.testing.assert_close(whole, matrices.double(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_factors_are_orthonormal_and_sorted(shape):
    U, S, V = decompose(random_matrices(shape), 3)
    assert (U.shape, S.shape, V.shape) == ((3, shape[0], 3), (3, 3), (3, shape[1], 3))
    eye = torch.eye(3, dtype=torch.float64).expand(3, 3, 3)
    torch.testing.assert_close(U.mT @ U, eye, rtol=0, atol=1e-9)
    torch.testing.assert_close(V.mT @ V, eye, rtol=0, atol=1e-9)
    assert (S.diff(dim=1) <= 0).all()
    assert (S >= 0).all()


@pytest.mark.parametrize("shape", [(10, 6), (6, 10)])
def test_a_rank_deficient_matrix_is_exact_at_its_rank(shape):
    matrices = random_matrices((shape[0], 2)) @ random_matrices((2, shape[1]), seed=1)
    for r in (2, 4, 6):
        factors = decompose(matrices, r)
        assert all(torch.isfinite(factor).all() for factor in factors)
        torch.testing.assert_close(multiplied_out(factors), matrices, rtol=0, atol=1e-6)


def test_zero_matrices_stay_zero():
    for factors in (decompose(torch.zeros(2, 3, 5), 2), decompose(torch.zeros(2, 5, 3), 3)):
        assert all(torch.isfinite(factor).all() for factor in factors)
        assert (multiplied_out(factors) == 0).all()


def test_one_task_of_zeros_beside_others():
    matrices = random_matrices((5, 4))
    matrices[1] = 0
    torch.testing.assert_close(multiplied_out(decompose(matrices, 4)), matrices, rtol=0, atol=1e-7)


def test_equal_singular_values_still_give_the_best_error():
    matrices = torch.eye(5, dtype=torch.float64).expand(2, 5, 5)
    whole = multiplied_out(decompose(matrices, 2))
    for matrix, approximation in zip(matrices, whole, strict=True):
        assert error(matrix, approximation) == pytest.approx(3**0.5, rel=1e-9)


def test_small_singular_values_survive_beside_a_large_one():
    # squaring loses what lies 8 orders below the largest; 1e-4 of it must come through
    generator = torch.Generator().manual_seed(3)
    Q, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))
    matrix = (Q * torch.tensor([1.0, 1e-1, 1e-2, 1e-3, 1e-4, 0, 0, 0], dtype=torch.float64)) @ Q.mT
    factors = decompose(matrix.unsqueeze(0), 5)
    np.testing.assert_allclose(factors.S[0].numpy(), [1.0, 1e-1, 1e-2, 1e-3, 1e-4], rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_keep_the_dtype(dtype):
    assert {factor.dtype for factor in decompose(random_matrices((4, 3), dtype=dtype), 2)} == {dtype}


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_what_is_not_a_matrix_is_kept_whole(shape):
    deltas = torch.randn(3, *shape)
    assert truncate(deltas, Svd(rank=1)) is deltas


def test_truncate_uses_the_rank_of_its_options():
    deltas = random_matrices((8, 6))
    budget = 2 * 3 * (8 + 6 + 1) * 8
    for options, r in ((Svd(rank=2), 2), (Svd(rank=99), 6), (Svd(fraction=0.5), 3), (Svd(budget=budget), 2)):
        factors = truncate(deltas, options)
        assert isinstance(factors, Factors)
        assert factors.S.shape == (3, r)


@pytest.mark.parametrize("shape", [(8, 6), (6, 8)])
def test_vectors_that_were_found_before_give_the_same_factors(shape):
    deltas = random_matrices(shape)
    for r in (1, 4):
        V = torch.stack([spectrum(delta, solver="exact").V for delta in deltas])[..., :r]
        found = truncate(deltas, Svd(rank=5), At("w", statistic=V))
        torch.testing.assert_close(multiplied_out(found), multiplied_out(decompose(deltas, r)), rtol=0, atol=1e-9)


def test_factors_of_huge_and_tiny_matrices_are_finite():
    for scale in (1e-30, 1e30):
        deltas = random_matrices((8, 6), dtype=torch.float32) * scale
        whole = multiplied_out(truncate(deltas, Svd(rank=6)))
        torch.testing.assert_close(whole / scale, deltas.double() / scale, rtol=0, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 7), st.integers(1, 7), st.permutations(range(3)))
def test_scaling_transposing_and_permuting_the_experts(seed, m, n, r, order):
    deltas = random_matrices((m, n), seed)
    whole = multiplied_out(truncate(deltas, Svd(rank=r)))
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(multiplied_out(truncate(deltas * -4, Svd(rank=r))), -4 * whole, **close)
    torch.testing.assert_close(multiplied_out(truncate(deltas.mT, Svd(rank=r))), whole.mT, **close)
    torch.testing.assert_close(multiplied_out(truncate(deltas[list(order)], Svd(rank=r))), whole[list(order)], **close)


def test_none_keeps_everything():
    deltas = torch.randn(2, 3, 4)
    assert keep(deltas, None) is deltas
