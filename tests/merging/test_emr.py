from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import emr as oracle

from twin_merging.errors import UserError
from twin_merging.merging import stack as stacks
from twin_merging.merging.emr import elect, elected, task_vectors
from twin_merging.merging.stack import Stack

SHAPES = [(), (1,), (7,), (8,), (9,), (3, 5), (2, 3, 4), (0,), (16, 5)]


def random_stack(tasks: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Stack:
    """θ₀ and experts of every shape, in quarters, which no dtype rounds; many magnitudes are equal, many signs opposite."""
    generator = torch.Generator().manual_seed(seed)
    base = {f"p{i}": (torch.randint(-8, 9, shape, generator=generator) / 4).to(dtype) for i, shape in enumerate(SHAPES)}
    base["zeros"] = torch.zeros(4, 4, dtype=dtype)
    experts = []
    for _ in range(tasks):
        steps = {name: torch.randint(-3, 4, x.shape, generator=generator) / 4 for name, x in base.items()}
        experts.append({name: x + steps[name].to(dtype) for name, x in base.items()})
    return Stack(base, experts, [*base])


def differences(stack: Stack) -> list[dict[str, np.ndarray]]:
    return [
        {name: (expert[name].double() - stack.base[name].double()).numpy() for name in stack.names}
        for expert in stack.experts
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tasks", [1, 2, 3, 8])
def test_equals_its_oracle(tasks, dtype):
    stack = random_stack(tasks, seed=tasks, dtype=dtype)
    fast, slow = task_vectors(elected(stack)), oracle.rebuilt(differences(stack))
    assert list(fast) == stack.names
    for name in stack.names:
        assert fast[name].shape == (tasks, *stack.base[name].shape)
        expected = np.stack([vectors[name] for vectors in slow])
        np.testing.assert_allclose(fast[name].double().numpy(), expected, rtol=1e-6, atol=0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_election_equals_its_oracle(data):
    tasks, numbers = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    entries = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]) | st.floats(-4, 4, width=16)
    rows = data.draw(st.lists(st.lists(entries, min_size=numbers, max_size=numbers), min_size=tasks, max_size=tasks))
    deltas = torch.tensor(rows, dtype=torch.float64)
    unified, masks = elect(deltas)
    slow, slow_masks = oracle.elect(list(deltas.numpy()))
    np.testing.assert_array_equal(unified.numpy(), slow)
    np.testing.assert_array_equal(masks.numpy(), np.stack(slow_masks))
    again, permuted = elect(deltas.flip(0))
    assert torch.equal(again, unified)
    assert torch.equal(permuted.flip(0), masks)
    opposite, same = elect(-deltas)
    assert torch.equal(opposite, -unified)
    assert torch.equal(same, masks)
    assert torch.equal(elect(2 * deltas)[0], 2 * unified)
    assert (masks * unified.abs() >= masks * deltas.abs()).all()


def test_a_sign_needs_a_majority_of_the_magnitude():
    deltas = torch.tensor([[3.0, 1.0, 1.0, 0.0], [-1.0, -1.0, 0.5, 0.0], [-1.0, 0.0, -2.0, 0.0]])
    unified, masks = elect(deltas)
    assert unified.tolist() == [3.0, 0.0, -2.0, 0.0]
    assert masks.tolist() == [[True, False, False, False], [False] * 4, [False, False, True, False]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_task_is_given_back(dtype):
    stack = random_stack(1, dtype=dtype)
    for name, deltas in task_vectors(elected(stack)).items():
        torch.testing.assert_close(stack.base[name] + deltas[0], stack.experts[0][name], rtol=1e-7, atol=1e-7)


def test_equal_experts_are_given_back():
    stack = random_stack(1)
    stack = Stack(stack.base, stack.experts * 4, stack.names)
    for name, deltas in task_vectors(elected(stack)).items():
        for delta in deltas:
            torch.testing.assert_close(stack.base[name] + delta, stack.experts[0][name], rtol=1e-7, atol=1e-7)


def test_each_task_keeps_the_size_that_it_had():
    stack = random_stack(5)
    fast = task_vectors(elected(stack))
    for t, own in enumerate(differences(stack)):
        size = sum(float(deltas[t].abs().sum()) for deltas in fast.values())
        assert size == pytest.approx(sum(float(np.abs(vector).sum()) for vector in own.values()), rel=1e-6)


def test_an_expert_that_equals_the_base_stays_it_and_one_without_a_mask_too():
    base = {"w": torch.zeros(3)}
    experts = [{"w": torch.tensor([2.0, 4.0, -2.0])}, {"w": torch.zeros(3)}, {"w": torch.tensor([-1.0, -1.0, 1.0])}]
    stored = elected(Stack(base, experts, ["w"]))
    assert stored["rescalers"].tolist() == [1, 0, 0]
    assert task_vectors(stored)["w"].tolist() == [[2, 4, -2], [0, 0, 0], [0, 0, 0]]


def test_pieces_do_not_change_what_is_stored(monkeypatch):
    stack = random_stack(3)
    whole = elected(stack)
    monkeypatch.setattr(stacks, "BLOCK", 8)
    monkeypatch.setattr(stacks, "TURN", 16)
    pieces = elected(stack)
    assert whole.keys() == pieces.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(pieces[name], tensor, rtol=1e-7, atol=0)


@pytest.mark.parametrize("tasks", [1, 8, 20])
def test_a_task_takes_a_bit_a_number(tasks):
    base = {"w": torch.zeros(64, 100)}
    stored = elected(Stack(base, [{"w": torch.ones(64, 100)}] * tasks, ["w"]))
    assert sum(tensor.nbytes for tensor in stored.values()) == 6400 * 4 + tasks * (6400 // 8 + 4)


def test_an_expert_that_is_not_finite_is_refused():
    base = {"w": torch.zeros(3)}
    with pytest.raises(UserError, match="NaN or infinity") as caught:
        elected(Stack(base, [{"w": torch.tensor([0, float("nan"), 0])}, base], ["w"]))
    assert caught.value.key == "merge_method=emr: w"
