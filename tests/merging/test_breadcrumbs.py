"""Model Breadcrumbs against its oracle, and what it keeps."""

from __future__ import annotations

import pytest
import torch
from elementwise_cases import CASES, as_numpy, assert_equals_oracle, task_vectors
from oracles import breadcrumbs as oracle
from peft.utils.merge_utils import magnitude_prune

from twin_merging.config import Breadcrumbs, TaskArithmetic
from twin_merging.merging import stack as stack_module
from twin_merging.merging import threshold as threshold_module
from twin_merging.merging.apply import merge
from twin_merging.merging.breadcrumbs import breadcrumbs
from twin_merging.merging.task_arithmetic import task_arithmetic

SHARES = [(0.85, 0.007), (0.3, 0.2), (0.0, 0.0), (0.0, 0.5), (0.5, 0.0), (0.5, 0.5), (1.0, 0.0), (0.0, 1.0), (0.9, 0.9)]


def merged_by(options: Breadcrumbs, base, experts):
    return merge(breadcrumbs, options, base, experts, list(base))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("bottom", "top"), SHARES)
def test_breadcrumbs_equals_its_oracle(bottom, top, seed, dtype):
    case = list(CASES)[seed % 3]
    base, experts = CASES[case](seed, 1 + seed % 5, dtype)
    options = {"bottom": bottom, "top": top, "scaling": 0.4}
    expected = oracle.breadcrumbs(as_numpy(base), task_vectors(base, experts), **options)
    assert_equals_oracle(merged_by(Breadcrumbs(**options), base, experts), expected, base)


def test_pieces_turns_and_brackets_change_nothing(monkeypatch):
    base, experts = CASES["smooth"](3, 4)
    options = Breadcrumbs(bottom=0.4, top=0.1)
    whole = merged_by(options, base, experts)
    monkeypatch.setattr(stack_module, "BLOCK", 3)
    monkeypatch.setattr(stack_module, "TURN", 6)
    monkeypatch.setattr(threshold_module, "DIRECT", 0)
    pieces = merged_by(options, base, experts)
    assert all(torch.equal(whole[name], pieces[name]) for name in base)


def test_each_tensor_loses_its_own_smallest_and_largest():
    base = {"small": torch.zeros(5), "large": torch.zeros(5)}
    numbers = torch.tensor([3.0, -1.0, 5.0, 2.0, -4.0])
    merged = merged_by(
        Breadcrumbs(bottom=0.4, top=0.2, scaling=1.0), base, [{"small": numbers, "large": 100 * numbers}]
    )
    assert torch.equal(merged["small"], torch.tensor([3.0, 0.0, 0.0, 0.0, -4.0]))
    assert torch.equal(merged["large"], 100 * merged["small"])


def test_equal_magnitudes_are_all_kept():
    base = {"w": torch.zeros(6)}
    expert = {"w": torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0])}
    assert torch.equal(merged_by(Breadcrumbs(bottom=0.5, top=0.2, scaling=1.0), base, [expert])["w"], expert["w"])


def test_without_either_end_dropped_it_is_task_arithmetic():
    base, experts = CASES["smooth"](1, 3, torch.float64)
    mine = merged_by(Breadcrumbs(bottom=0.0, top=0.0, scaling=0.3), base, experts)
    other = merge(task_arithmetic, TaskArithmetic(scaling=0.3), base, experts, list(base))
    for name in base:
        torch.testing.assert_close(mine[name], other[name], rtol=1e-12, atol=1e-12)


def test_without_the_top_dropped_it_is_pefts_magnitude_pruning():
    deltas = torch.randn(3, 20, 10, generator=torch.Generator().manual_seed(0))
    base, experts = {"w": torch.zeros(20, 10)}, [{"w": delta} for delta in deltas]
    mine = merged_by(Breadcrumbs(bottom=0.75, top=0.0, scaling=1.0), base, experts)["w"]
    torch.testing.assert_close(mine, magnitude_prune(list(deltas), torch.ones(3), 0.25), rtol=1e-6, atol=1e-6)
