from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import svd as oracle
from oracles.dynamic import multiplied_out

from twin_merging.config import Svd
from twin_merging.sparsifiers.none import keep
from twin_merging.sparsifiers.svd import Factors, decompose, rank_for, truncate

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
    for options, r in ((Svd(rank=2), 2), (Svd(rank=99), 6), (Svd(fraction=0.5), 3), (Svd(budget=0.5), 1)):
        factors = truncate(deltas, options)
        assert isinstance(factors, Factors)
        assert factors.S.shape == (3, r)


def test_none_keeps_everything():
    deltas = torch.randn(2, 3, 4)
    assert keep(deltas, None) is deltas


def test_rank_is_at_least_1_and_at_most_the_smaller_side():
    generator = np.random.default_rng(0)
    for _ in range(500):
        m, n = (int(side) for side in generator.integers(1, 60, size=2))
        share = float(generator.uniform(1e-6, 1))
        for options in (Svd(rank=int(generator.integers(1, 100))), Svd(fraction=share), Svd(budget=share)):
            assert 1 <= rank_for(m, n, options) <= min(m, n)


def test_rank_as_given():
    assert [rank_for(10, 20, Svd(rank=rank)) for rank in (1, 7, 10, 11)] == [1, 7, 10, 10]


def test_fraction_is_of_the_smaller_side_rounded_down():
    assert [rank_for(10, 20, Svd(fraction=share)) for share in (0.01, 0.1, 0.29, 0.99, 1.0)] == [1, 1, 2, 9, 10]


def test_a_budget_is_used_up_and_never_exceeded():
    generator = np.random.default_rng(1)
    for _ in range(500):
        m, n = (int(side) for side in generator.integers(1, 60, size=2))
        share = float(generator.uniform(0.01, 1))
        r = rank_for(m, n, Svd(budget=share))
        allowed = share * m * n
        assert r == 1 or r * (m + n + 1) <= allowed + 1e-9
        assert r == min(m, n) or (r + 1) * (m + n + 1) > allowed - 1e-9


def test_stored_numbers_are_what_the_budget_counts():
    m, n = 20, 30
    factors = truncate(random_matrices((m, n), tasks=1), Svd(budget=0.4))
    assert sum(factor.numel() for factor in factors) == 4 * (m + n + 1)
