from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import sparsifiers as oracle

from twin_merging.config import Svd
from twin_merging.sparsifiers.ranks import Matrix, choose_ranks, fixed_rank


def matrices(seed: int, experts: int = 2) -> dict[str, Matrix]:
    generator = np.random.default_rng(seed)
    found = {}
    for index in range(int(generator.integers(1, 5))):
        m, n = (int(side) for side in generator.integers(1, 12, size=2))
        S = np.sort(generator.exponential(size=(experts, min(m, n))), axis=1)[:, ::-1].copy()
        found[f"w{index}"] = Matrix(torch.from_numpy(S.astype(np.float32)), m, n)
    return found


def test_rank_is_at_least_1_and_at_most_the_smaller_side():
    generator = np.random.default_rng(0)
    for _ in range(500):
        m, n = (int(side) for side in generator.integers(1, 60, size=2))
        for options in (Svd(rank=int(generator.integers(1, 100))), Svd(fraction=float(generator.uniform(1e-6, 1)))):
            assert 1 <= fixed_rank(m, n, options) <= min(m, n)
    assert fixed_rank(0, 5, Svd(rank=3)) == 0


def test_rank_as_given():
    assert [fixed_rank(10, 20, Svd(rank=rank)) for rank in (1, 7, 10, 11)] == [1, 7, 10, 10]


def test_fraction_is_of_the_smaller_side_rounded_down():
    shares = (0.01, 0.1, 0.29, 0.99, 1.0)
    assert [fixed_rank(10, 20, Svd(fraction=share)) for share in shares] == [1, 1, 2, 9, 10]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 4000))
def test_a_budget_goes_where_it_is_worth_most(seed, room):
    found = matrices(seed)
    spectra = {name: matrix.S.double().numpy() for name, matrix in found.items()}
    costs = {name: 4 * len(matrix.S) * (matrix.m + matrix.n + 1) for name, matrix in found.items()}
    ranks = choose_ranks(found, Svd(budget=1), room)
    assert ranks == oracle.ranks_under_a_budget(spectra, costs, room)
    left = room - sum(rank * costs[name] for name, rank in ranks.items())
    assert left >= 0
    assert all(costs[name] > left or ranks[name] == len(found[name].S[0]) for name in found)


@pytest.mark.parametrize("share", [1e-6, 0.3, 0.9, 0.999, 1.0])
def test_energy_is_the_smallest_rank_that_reaches_it_for_every_expert(share):
    for seed in range(20):
        for name, r in choose_ranks(found := matrices(seed), Svd(energy=share)).items():
            squares = found[name].S.double().numpy() ** 2
            totals = squares.sum(1) * share * (1 - 1e-12)
            assert (squares[:, :r].sum(1) >= totals).all()
            assert r == 1 or (squares[:, : r - 1].sum(1) < totals * (1 + 1e-9)).any()


def test_energy_of_zeros_and_of_nothing():
    found = {"zeros": Matrix(torch.zeros(2, 3), 3, 4), "nothing": Matrix(torch.zeros(2, 0), 0, 4)}
    assert choose_ranks(found, Svd(energy=0.5)) == {"zeros": 1, "nothing": 0}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(3)), st.floats(0.1, 10))
def test_neither_the_order_of_experts_nor_a_common_factor_matters(seed, order, factor):
    found = matrices(seed, experts=3)
    moved = {name: Matrix(S[list(order)] * factor, m, n) for name, (S, m, n) in found.items()}
    assert choose_ranks(found, Svd(energy=0.7)) == choose_ranks(moved, Svd(energy=0.7))
