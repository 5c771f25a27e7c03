"""What all experts know of a parameter, summed up under one example's weights."""

from __future__ import annotations

import pytest
import torch
from oracles import dynamic as oracle

from twin_merging.sparsifiers.stored import weighted_sum
from twin_merging.sparsifiers.svd import Factors

T, m, n = 4, 7, 5


@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_weighted_sum_of_factors_is_that_of_their_products(rank, dtype):
    generator = torch.Generator().manual_seed(rank)
    factors = Factors(
        *(torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((T, m, rank), (T, rank), (T, n, rank)))
    )
    weights = torch.rand(T, generator=generator)
    expected = torch.tensordot(weights.double(), oracle.multiplied_out(factors), 1)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(weighted_sum(weights, factors).double(), expected, rtol=0, atol=tolerance * 10)


def test_weighted_sum_of_whole_tensors():
    whole, weights = torch.randn(T, m, 2, n, dtype=torch.float64), torch.rand(T)
    expected = sum(w * x for w, x in zip(weights.double(), whole, strict=True))
    torch.testing.assert_close(weighted_sum(weights, whole), expected)


def test_weighted_sum_of_factors_makes_no_experts_matrix():
    """Of 64 matrices of 2000 x 2000, a gigabyte, none is made."""
    factors = Factors(torch.randn(64, 2000, 1), torch.ones(64, 1), torch.randn(64, 2000, 1))
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            sizes.append(found.numel())
            return found

    with Watch():
        weighted_sum(torch.rand(64), factors)
    assert max(sizes) == 2000 * 2000
