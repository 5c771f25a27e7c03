from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix_cases import SHAPES, as_numpy, awkward_cases, random_case
from oracles import wudi as oracle

from twin_merging.config import Wudi
from twin_merging.merging.apply import merge
from twin_merging.merging.method import At
from twin_merging.merging.wudi import curvature, least_disturbing, wudi

STEPS = 40


def merged(base: torch.Tensor, deltas: torch.Tensor, name: str = "a.weight", **options) -> torch.Tensor:
    return wudi(base, deltas.clone(), Wudi(**{"steps": STEPS, "lr": 1e-2, **options}), At(name))


def by_autograd(deltas: torch.Tensor, steps: int, lr: float) -> torch.Tensor:
    """Adam on the loss as it is written, with torch's own derivative."""
    found = torch.nn.Parameter(deltas.sum(0))
    adam = torch.optim.Adam([found], lr=lr)
    squares = deltas.square().sum((1, 2))
    for _ in range(steps):
        adam.zero_grad()
        ((((found - deltas) @ deltas.mT).square()).sum((1, 2)) / squares).sum().backward()
        adam.step()
    return found.detach()


@pytest.mark.parametrize("tasks", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_its_oracle(shape, tasks):
    base, deltas = random_case(shape, tasks, seed=sum(shape) + tasks)
    for scaling in (1.0, -0.4):
        slow = oracle.wudi(*as_numpy(base, deltas), scaling, STEPS, 1e-2)
        np.testing.assert_allclose(merged(base, deltas, scaling=scaling).numpy(), slow, rtol=0, atol=1e-6)


# at the least disturbance from the start, or with slopes near ε, Adam makes much of the last digits
@pytest.mark.parametrize("name", sorted(set(awkward_cases()) - {"tiny", "opposite experts"}))
def test_equals_its_oracle_on_awkward_matrices(name):
    base, deltas = awkward_cases()[name]
    slow = oracle.wudi(*as_numpy(base, deltas), 1.0, STEPS, 1e-2)
    np.testing.assert_allclose(merged(base, deltas).numpy(), slow, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3)])
def test_the_oracles_gradient_is_the_slope_of_the_disturbance(shape):
    base, deltas = random_case(shape, 3)
    # one step of Adam goes by the gradient's sign
    moved = oracle.wudi(*as_numpy(base, deltas), 1.0, 1, 1e-3) - base.numpy() - deltas.sum(0).numpy()
    slope = oracle.slope(deltas.sum(0).numpy(), list(deltas.numpy()))
    np.testing.assert_allclose(moved, -1e-3 * np.sign(slope), rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (24, 10)])
def test_equals_adam_on_the_loss_by_autograd(shape, dtype):
    deltas = (0.01 * random_case(shape, 4)[1]).to(dtype)
    fast, slow = least_disturbing(deltas, 300, 1e-5), by_autograd(deltas, 300, 1e-5)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-9 if dtype == torch.float64 else 3e-6)
    assert (fast - deltas.sum(0)).abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_few_directions_take_a_small_product_and_give_the_same(shape, dtype):
    tall, wide = random_case((shape[0], 2), 3, seed=1)[1], random_case((2, shape[1]), 3, seed=2)[1]
    deltas = (0.01 * tall @ wide).to(dtype)
    joined = torch.nn.functional.normalize(deltas.flatten(1)).view_as(deltas).flatten(0, 1)
    left, right = curvature(joined)
    assert (left.shape, right.shape) == ((shape[1], 6), (6, shape[1]))
    torch.testing.assert_close(left @ right, 2 * joined.mT @ joined)
    fast, slow = least_disturbing(deltas, 300, 1e-5), by_autograd(deltas, 300, 1e-5)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-9 if dtype == torch.float64 else 3e-6)
    assert (fast - deltas.sum(0)).abs().max() > 1e-4


def test_many_directions_take_the_whole_product():
    joined = random_case((40, 24), 1)[1].flatten(0, 1)
    left, right = curvature(joined)
    assert left is None
    torch.testing.assert_close(right, 2 * joined.mT @ joined)
    assert curvature(torch.full((3, 8), torch.nan))[0] is None


def test_directions_that_matter_little_are_kept_too():
    """Three large ones, and all others at a hundredth of a percent: more than rounding."""
    large = random_case((40, 3), 1)[1][0] @ random_case((3, 24), 1, seed=1)[1][0]
    joined = large + 1e-2 * random_case((40, 24), 1, seed=2)[1][0]
    left, right = curvature(joined)
    assert left is None
    torch.testing.assert_close(right, 2 * joined.mT @ joined)


def test_many_steps_reach_the_least_disturbance():
    _, deltas = random_case((5, 7), 3)
    units = [delta / delta.norm() for delta in deltas]
    curvature = sum(unit.mT @ unit for unit in units)
    best = torch.linalg.solve(
        curvature, sum(delta @ unit.mT @ unit for delta, unit in zip(deltas, units, strict=True)), left=False
    )
    found = least_disturbing(deltas, 3000, 1e-2)
    torch.testing.assert_close(found, best, rtol=0, atol=1e-4)
    assert oracle.disturbance(found.numpy(), list(deltas.numpy())) < oracle.disturbance(
        deltas.sum(0).numpy(), list(deltas.numpy())
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), tasks=st.integers(1, 5), rows=st.integers(1, 8), columns=st.integers(1, 8))
def test_invariants(seed, tasks, rows, columns):
    base, deltas = random_case((rows, columns), tasks, seed)
    once = merged(base, deltas)
    torch.testing.assert_close(merged(base, deltas.flip(0)), once, rtol=0, atol=1e-6)
    torch.testing.assert_close(merged(base, deltas, scaling=0.0), base, rtol=0, atol=0)
    torch.testing.assert_close(merged(base, deltas, steps=0), base + deltas.sum(0), rtol=0, atol=0)
    before, after = (
        oracle.disturbance(vector.numpy(), list(deltas.numpy())) for vector in (deltas.sum(0), once - base)
    )
    assert after <= before + 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_expert_is_given_back_exactly(dtype):
    base, deltas = (tensor.to(dtype) for tensor in random_case((9, 5), 1))
    assert torch.equal(merged(base, deltas), base + deltas[0])


def test_opposite_experts_cancel():
    base, deltas = awkward_cases()["opposite experts"]
    torch.testing.assert_close(merged(base, deltas, lr=1e-5), base, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["layer.bias", "embeddings.word.weight", "class_token"])
def test_what_is_no_linear_layer_stays_or_is_averaged(name):
    base, deltas = random_case((5, 4), 2)
    assert torch.equal(merged(base, deltas, name), base)
    torch.testing.assert_close(merged(base, deltas, name, rest="average", scaling=0.5), base + 0.25 * deltas.sum(0))


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4), (0,), (0, 4), (4, 0)])
def test_what_is_no_matrix_stays(shape):
    base, deltas = random_case(shape, 3)
    assert torch.equal(merged(base, deltas), base)
    torch.testing.assert_close(merged(base, deltas, rest="average"), base + deltas.sum(0) / 3)


def test_bfloat16_is_merged_in_float32():
    base, deltas = random_case((6, 5), 2)
    base = base.bfloat16()
    experts = [(base + delta).bfloat16() for delta in deltas]
    fast = merge(wudi, Wudi(), {"w.weight": base}, [{"w.weight": expert} for expert in experts], ["w.weight"])
    slow = oracle.wudi(base.double().numpy(), [expert.double().numpy() for expert in experts], 1.0, 300, 1e-5)
    np.testing.assert_allclose(fast["w.weight"].double().numpy(), slow, rtol=2**-8, atol=1e-4)
