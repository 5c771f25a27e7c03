"""TIES against its oracle, against PEFT where both do the same, and what it does where they differ."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from elementwise_cases import CASES, as_numpy, assert_equals_oracle, task_vectors
from oracles import ties as oracle
from peft.utils.merge_utils import ties as peft_ties

from twin_merging.config import Ties
from twin_merging.merging import stack as stack_module
from twin_merging.merging import threshold as threshold_module
from twin_merging.merging import ties as ties_module
from twin_merging.merging.apply import merge
from twin_merging.merging.stack import Stack
from twin_merging.merging.ties import disjoint_merge, elect, majority_sign, ties, trim, vote

CHOICES = list(itertools.product(("global", "per_tensor"), ("majority", "positive", "drop"), ("mean", "sum")))


def merged_by(options: Ties, base, experts):
    return merge(ties, options, base, experts, list(base))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(12))
def test_ties_equals_its_oracle(case, seed, dtype):
    base, experts = CASES[case](seed, 1 + seed % 5, dtype)
    threshold, zero_sign, reduction = CHOICES[seed]
    chosen = {"threshold": threshold, "zero_sign": zero_sign, "reduction": reduction}
    for density, scaling in ((0.2, 1.0), (0.55, -0.4), (0.0, 1.0), (1.0, 0.3)):
        merged = merged_by(Ties(density=density, scaling=scaling, **chosen), base, experts)
        deltas = task_vectors(base, experts)
        expected = oracle.ties(as_numpy(base), deltas, density=density, scaling=scaling, **chosen)
        assert_equals_oracle(merged, expected, base)


@pytest.mark.parametrize("threshold", ["global", "per_tensor"])
def test_pieces_turns_and_brackets_change_nothing(monkeypatch, threshold):
    base, experts = CASES["smooth"](3, 4)
    whole = merged_by(Ties(threshold=threshold), base, experts)
    monkeypatch.setattr(stack_module, "BLOCK", 3)
    monkeypatch.setattr(stack_module, "TURN", 6)
    monkeypatch.setattr(threshold_module, "DIRECT", 0)
    pieces = merged_by(Ties(threshold=threshold), base, experts)
    assert all(torch.equal(whole[name], pieces[name]) for name in base)


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("experts", [1, 3, 8])
def test_ties_is_pefts_with_a_threshold_for_each_tensor_and_a_positive_sign_for_zeros(density, experts):
    generator = torch.Generator().manual_seed(experts)
    base = {"w": torch.zeros(40, 25)}
    states = [{"w": torch.randn(40, 25, generator=generator)} for _ in range(experts)]
    options = Ties(density=density, threshold="per_tensor", zero_sign="positive")
    theirs = peft_ties([state["w"] for state in states], torch.ones(experts), density)
    torch.testing.assert_close(merged_by(options, base, states)["w"], theirs, rtol=1e-6, atol=1e-6)


def test_the_largest_of_the_whole_vector_may_all_be_in_one_tensor():
    base = {"small": torch.zeros(4), "large": torch.zeros(4)}
    expert = {"small": torch.tensor([0.1, 0.2, 0.3, 0.4]), "large": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    merged = merged_by(Ties(density=0.5), base, [expert])
    assert torch.equal(merged["small"], torch.zeros(4))
    assert torch.equal(merged["large"], expert["large"])
    merged = merged_by(Ties(density=0.5, threshold="per_tensor"), base, [expert])
    assert torch.equal(merged["small"], torch.tensor([0.0, 0.0, 0.3, 0.4]))


def test_numbers_equal_to_the_threshold_are_all_kept():
    deltas = torch.tensor([[1.0, -2.0, 2.0, 0.5]])
    stack = Stack({"w": torch.zeros(4)}, [{"w": deltas[0]}], ["w"])
    (threshold,) = vote(stack, Ties(density=0.25), 0)["w"].thresholds
    assert threshold == 2
    assert torch.equal(trim(deltas.clone(), torch.tensor([2.0])), torch.tensor([[0.0, -2.0, 2.0, 0.0]]))


@pytest.mark.parametrize(("others", "majority"), [([1.0, 1.0], 1.0), ([-1.0, -1.0], -1.0), ([1.0, -1.0], 1.0)])
def test_where_experts_cancel_out_the_majority_of_all_parameters_decides(others, majority):
    base = {"w": torch.zeros(1), "v": torch.zeros(2)}
    other = torch.tensor(others)
    experts = [{"w": torch.tensor([3.0]), "v": other}, {"w": torch.tensor([-3.0]), "v": other}]
    for zero_sign, expected in (("majority", 3 * majority), ("positive", 3.0), ("drop", 0.0)):
        merged = merged_by(Ties(density=1.0, zero_sign=zero_sign), base, experts)
        assert merged["w"].item() == expected
        assert torch.equal(merged["v"], other)


def test_the_mean_is_over_agreeing_numbers_that_are_not_zero():
    trimmed = torch.tensor([[4.0], [2.0], [0.0], [-1.0]])
    sign = elect(trimmed, lambda: 1.0)
    assert sign.item() == 1
    assert disjoint_merge(trimmed.clone(), sign, "mean").item() == 3
    assert disjoint_merge(trimmed.clone(), sign, "sum").item() == 6


def test_elected_signs_are_one_of_three():
    trimmed = torch.tensor([[1e-30, -1e-30, 2.0, 1e30, -0.0], [0.0, 0.0, -2.0, 0.0, 0.0]])
    for zero_sign in (1.0, -1.0, 0.0):
        assert elect(trimmed, lambda sign=zero_sign: sign).tolist() == [1.0, -1.0, zero_sign, 1.0, 0.0]


@pytest.mark.parametrize(("second", "readings"), [([1.0, -2.0, 3.0], 0), ([1.0, -2.0, -5.0], 1)])
def test_the_majority_is_counted_only_if_experts_cancel_out_and_once(second, readings, monkeypatch):
    monkeypatch.setattr(stack_module, "BLOCK", 1)
    monkeypatch.setattr(stack_module, "TURN", 1)
    counted = []
    real = ties_module.majority_sign
    monkeypatch.setattr(ties_module, "majority_sign", lambda *given: counted.append(1) or real(*given))
    base = {"w": torch.zeros(3), "v": torch.zeros(3)}
    experts = [dict.fromkeys(base, torch.tensor([1.0, -2.0, 5.0])), dict.fromkeys(base, torch.tensor(second))]
    merged_by(Ties(density=1.0), base, experts)
    assert len(counted) == readings


def test_the_majority_is_counted_once_for_each_number(monkeypatch):
    monkeypatch.setattr(stack_module, "BLOCK", 2)
    monkeypatch.setattr(stack_module, "TURN", 4)
    base = {"w": torch.zeros(9)}
    few = {"w": torch.tensor([9.0, 9, 9, 9, -1, -1, -1, -1, -1])}
    stack = Stack(base, [few], ["w"])
    assert majority_sign(stack, {"w": torch.zeros(1)}) == -1
    assert majority_sign(stack, {"w": torch.tensor([5.0])}) == 1


def test_a_model_of_no_numbers_merges():
    base = {"w": torch.zeros(0)}
    assert merged_by(Ties(), base, [dict(base)])["w"].shape == (0,)


@pytest.mark.parametrize("shape", [(), (6,), (2, 3)])
def test_its_parts_take_tensors_of_any_shape(shape):
    deltas = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    flat = deltas.reshape(3, -1).clone()
    thresholds = torch.tensor([0.1, 0.5, 1.0])
    trimmed = trim(deltas, thresholds)
    sign = elect(trimmed, lambda: 1.0)
    assert sign.shape == shape
    flat_trimmed = trim(flat, thresholds)
    np.testing.assert_array_equal(sign.flatten(), elect(flat_trimmed, lambda: 1.0))
    merged, flat_merged = disjoint_merge(trimmed, sign, "mean"), disjoint_merge(flat_trimmed, sign.flatten(), "mean")
    assert torch.equal(merged.flatten(), flat_merged)
