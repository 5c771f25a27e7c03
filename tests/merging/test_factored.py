"""What methods on whole matrices make of low-rank products is what they make of the dense matrices."""

from __future__ import annotations

import pytest
import torch
from oracles.iso import iso_c
from oracles.tsv import tsv_merge

from twin_merging.config import merge_methods
from twin_merging.merging import factored

ORACLES = {"tsv_merge": tsv_merge, "iso_c": iso_c}
SHAPES = [(7, 9), (9, 7), (40, 30), (5, 60)]


def products(shape: tuple[int, int], ranks: list[int], seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    chance = torch.Generator().manual_seed(seed)
    left = [torch.randn(shape[0], r, generator=chance) for r in ranks]
    return left, [torch.randn(r, shape[1], generator=chance) for r in ranks]


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ranks", [[1], [2, 3], [4, 1, 2], [3, 3, 3, 3]])
@pytest.mark.parametrize("resting", [0, 2])
def test_factors_give_what_dense_matrices_do(name, shape, ranks, resting):
    """Also where fewer triplets of an expert count than it has, where factors are more than the matrix, and experts rest."""
    left, right = products(shape, ranks)
    options, experts = merge_methods[name].options(scaling=0.7), len(ranks) + resting
    A, B = factored.merged("w", left, right, experts, options)
    base = torch.zeros(shape, dtype=torch.float64).numpy()
    deltas = [B_t.double() @ A_t.double() for B_t, A_t in zip(left, right, strict=True)]
    dense = ORACLES[name](base, [*(delta.numpy() for delta in deltas), *[base] * resting], 0.7)
    torch.testing.assert_close(B.double() @ A.double(), torch.from_numpy(dense), rtol=1e-5, atol=1e-5)
    assert len(A) == B.shape[1] <= sum(ranks)


@pytest.mark.parametrize("name", ORACLES)
def test_experts_that_have_directions_in_common(name):
    """The same B twice, another A: joined vectors depend on one another."""
    (B, other), (A, more) = products((20, 30), [3, 3])
    left, right = [B, B, other], [A, more, A]
    options = merge_methods[name].options(scaling=1.0)
    found = factored.merged("w", left, right, 3, options)
    base = torch.zeros(20, 30, dtype=torch.float64).numpy()
    dense = ORACLES[name](base, [(b.double() @ a.double()).numpy() for b, a in zip(left, right, strict=True)], 1.0)
    torch.testing.assert_close(found[1].double() @ found[0].double(), torch.from_numpy(dense), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ORACLES)
def test_experts_that_change_nothing_are_an_adapter_of_zeros(name):
    A, B = factored.merged("w", [torch.zeros(4, 2)] * 2, [torch.ones(2, 5)] * 2, 2, merge_methods[name].options())
    assert (A.shape, B.shape) == ((1, 5), (4, 1))
    assert not (B @ A).any()


@pytest.mark.parametrize("name", ORACLES)
def test_what_counts_as_no_matrix_is_averaged(name):
    left, right = products((6, 8), [2, 3])
    options = merge_methods[name].options(scaling=0.5, matrices=["layers.*"])
    A, B = factored.merged("embed", left, right, 3, options)
    expected = 0.5 / 3 * sum(B_t @ A_t for B_t, A_t in zip(left, right, strict=True))
    torch.testing.assert_close(B @ A, expected, rtol=0, atol=1e-6)


def test_nothing_of_the_matrix_size_but_factors_is_made():
    """A matrix of this size would be 40 GB."""
    left, right = products((100_000, 100_000), [2, 3])
    A, B = factored.merged("w", left, right, 2, merge_methods["tsv_merge"].options())
    assert (A.shape, B.shape) == ((5, 100_000), (100_000, 5))
