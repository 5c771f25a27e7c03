"""RegMean against least squares and its own formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import regmean as oracle
from sklearn.linear_model import LinearRegression
from torch import Tensor

from twin_merging.config import RegMean
from twin_merging.merging.apply import merge
from twin_merging.merging.method import At, kind_of
from twin_merging.merging.regmean import Turned, regmean


def random_case(seed: int, experts: int = 3, out: int = 4, size: int = 5, rows: int = 20):
    """Weights and inputs of each expert, as numpy."""
    chance = np.random.default_rng(seed)
    weights = [chance.normal(size=(out, size)) for _ in range(experts)]
    return weights, [chance.normal(size=(rows, size)) * chance.uniform(0.1, 3, size) for _ in range(experts)]


def merged(weights, inputs, off_diagonal: float, dtype=torch.float64) -> np.ndarray:
    stacked = torch.stack([torch.from_numpy(weight) for weight in weights]).to(dtype)
    grams = torch.stack([torch.from_numpy(rows.T @ rows) for rows in inputs]).to(dtype)
    before = grams.clone()
    base = torch.zeros(stacked.shape[1:], dtype=dtype)
    found = regmean(base, stacked, RegMean(off_diagonal=off_diagonal), At(statistic=grams))
    assert found.dtype == dtype
    assert torch.equal(grams, before)
    return found.double().numpy()


@pytest.mark.parametrize("seed", range(5))
def test_whole_grams_give_the_least_squares_solution(seed):
    weights, inputs = random_case(seed, experts=1 + seed)
    found = merged(weights, inputs, 1.0)
    np.testing.assert_allclose(found, oracle.least_squares(weights, inputs), rtol=1e-8, atol=1e-9)
    rows, wanted = np.concatenate(inputs), np.concatenate([x @ w.T for x, w in zip(inputs, weights, strict=True)])
    theirs = LinearRegression(fit_intercept=False).fit(rows, wanted).coef_
    np.testing.assert_allclose(found, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("off_diagonal", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_its_formula(seed, off_diagonal, dtype):
    weights, inputs = random_case(seed)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-4
    found = merged(weights, inputs, off_diagonal, dtype)
    np.testing.assert_allclose(found, oracle.regmean(weights, inputs, off_diagonal), rtol=tolerance, atol=tolerance)


def test_fewer_inputs_than_dimensions_keep_the_mean_where_there_is_none():
    weights, inputs = random_case(1, size=9, rows=2)  # six inputs for nine dimensions
    found = merged(weights, inputs, 1.0)
    np.testing.assert_allclose(found, oracle.least_squares(weights, inputs), rtol=1e-5, atol=1e-5)
    unseen = np.linalg.svd(np.concatenate(inputs))[2][6:]
    np.testing.assert_allclose((found - sum(weights) / 3) @ unseen.T, 0, atol=1e-6)


@pytest.mark.parametrize("off_diagonal", [0.9, 1.0])
def test_a_dead_input_keeps_the_mean(off_diagonal):
    weights, inputs = random_case(2)
    for rows in inputs:
        rows[:, 3] = 0
    found = merged(weights, inputs, off_diagonal)
    np.testing.assert_allclose(found[:, 3], (sum(weights) / 3)[:, 3])
    alive = [0, 1, 2, 4]
    alone = oracle.regmean([w[:, alive] for w in weights], [x[:, alive] for x in inputs], off_diagonal)
    np.testing.assert_allclose(found[:, alive], alone, rtol=1e-8, atol=1e-9)


def test_no_input_at_all_gives_the_mean():
    weights, inputs = random_case(3)
    found = merged(weights, [np.zeros_like(rows) for rows in inputs], 0.9)
    np.testing.assert_allclose(found, sum(weights) / 3)


def test_equal_grams_give_the_mean():
    weights, inputs = random_case(4)
    found = merged(weights, [inputs[0]] * 3, 0.9)
    np.testing.assert_allclose(found, sum(weights) / 3, rtol=1e-9, atol=1e-9)


def test_what_has_no_gram_is_averaged():
    base = {"norm": torch.zeros(3), "deep": torch.zeros(2, 2), "scalar": torch.zeros(())}
    experts = [{name: torch.full_like(tensor, value) for name, tensor in base.items()} for value in (1.0, 2.0)]
    found = merge(regmean, RegMean(), base, experts, list(base), statistics={"deep": torch.eye(2).expand(2, 2, 2)})
    for tensor in found.values():
        torch.testing.assert_close(tensor, torch.full_like(tensor, 1.5))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([0.0, 0.7, 0.9]))
def test_experts_may_come_in_any_order_and_one_alone_is_itself(seed, experts, off_diagonal):
    weights, inputs = random_case(seed, experts=experts)
    order = np.random.default_rng(seed).permutation(experts)
    found = merged(weights, inputs, off_diagonal)
    np.testing.assert_allclose(
        merged([weights[i] for i in order], [inputs[i] for i in order], off_diagonal), found, rtol=1e-8, atol=1e-9
    )
    np.testing.assert_allclose(merged(weights[:1], inputs[:1], off_diagonal), weights[0], rtol=1e-8, atol=1e-9)
    scaled = merged(weights, [10 * rows for rows in inputs], off_diagonal)
    np.testing.assert_allclose(scaled, found, rtol=1e-8, atol=1e-9)


def test_it_says_what_it_needs():
    assert kind_of(regmean).needs == RegMean.needs == "gram"


def test_bfloat16_weights_are_solved_for_in_float32():
    generator = torch.Generator().manual_seed(0)
    states = [{"w": torch.randn(4, 5, generator=generator).bfloat16()} for _ in range(3)]
    grams: Tensor = torch.randn(2, 9, 5, generator=generator)
    grams = grams.mT @ grams
    found = merge(regmean, RegMean(), states[0], states[1:], ["w"], statistics={"w": grams})["w"]
    exact = regmean(
        torch.zeros(4, 5, dtype=torch.float64),
        torch.stack([state["w"].double() for state in states[1:]]), RegMean(), At(statistic=grams),
    )  # fmt: skip
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("size", [5, 4])  # the second is as wide as it is high
def test_a_matrix_that_is_applied_from_the_right_is_turned(size):
    weights, inputs = random_case(7, size=size)
    grams = torch.stack([torch.from_numpy(rows.T @ rows) for rows in inputs])
    stacked = torch.stack([torch.from_numpy(weight).T for weight in weights])
    found = regmean(torch.zeros(size, 4), stacked, RegMean(off_diagonal=1.0), At(statistic=Turned(grams)))
    np.testing.assert_allclose(found.numpy(), oracle.least_squares(weights, inputs).T, rtol=1e-8, atol=1e-9)
