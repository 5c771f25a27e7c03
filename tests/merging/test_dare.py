"""DARE's masks, and its merges against an oracle given the same masks and against PEFT."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from elementwise_cases import CASES, as_numpy, assert_equals_oracle, task_vectors
from oracles import dare as oracle
from peft.utils import merge_utils as peft
from scipy import stats

from twin_merging.config import DareTaskArithmetic, DareTies
from twin_merging.merging import stack as stack_module
from twin_merging.merging import threshold as threshold_module
from twin_merging.merging.apply import merge
from twin_merging.merging.dare import CHUNK, LEVELS, dare_task_arithmetic, dare_ties, draws, drop, kept_share
from twin_merging.merging.method import At

TIES = {"density": 0.4, "threshold": "global", "zero_sign": "majority", "reduction": "mean"}


def masks_of(base, experts: int, drop_rate: float, seed: int) -> list[dict[str, np.ndarray]]:
    """Which numbers are kept, found by dropping ones."""
    kept: list[dict[str, np.ndarray]] = [{} for _ in range(experts)]
    for name, x in base.items():
        ones = torch.ones(experts, x.numel())
        drop(ones, drop_rate, name, 0, seed)
        for mask, row in zip(kept, ones, strict=True):
            mask[name] = row.reshape(x.shape).bool().numpy()
    return kept


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(6))
def test_both_equal_their_oracles(case, seed, dtype):
    base, experts = CASES[case](seed, 1 + seed % 4, dtype)
    drop_rate, rescale = (0.0, 0.5, 0.7)[seed % 3], seed % 2 == 0
    chosen = {"drop_rate": drop_rate, "rescale": rescale, "scaling": 0.6}
    given = {
        "base": as_numpy(base), "deltas": task_vectors(base, experts), "scaling": 0.6,
        "kept": masks_of(base, len(experts), drop_rate, seed), "factor": 1 / kept_share(drop_rate) if rescale else 1,
    }  # fmt: skip
    merged = merge(dare_task_arithmetic, DareTaskArithmetic(**chosen), base, experts, list(base), seed=seed)
    assert_equals_oracle(merged, oracle.dare_task_arithmetic(**given), base)
    for ties in (TIES, {**TIES, "density": 1.0}, {**TIES, "threshold": "per_tensor", "zero_sign": "drop"}):
        merged = merge(dare_ties, DareTies(**chosen, **ties), base, experts, list(base), seed=seed)
        assert_equals_oracle(merged, oracle.dare_ties(**given, **ties), base)


def test_masks_do_not_depend_on_how_a_parameter_is_read():
    whole = draws("w", 3, 0, 5000, seed=1)
    assert whole.shape == (3, 5000)
    for start, count in ((0, 1), (1, 1), (CHUNK - 1, 2), (CHUNK, CHUNK), (1234, 3000), (4999, 1), (5000, 0)):
        np.testing.assert_array_equal(draws("w", 3, start, count, seed=1), whole[:, start : start + count])


@pytest.mark.parametrize("options", [DareTaskArithmetic(), DareTies()])
def test_pieces_turns_and_brackets_change_nothing(monkeypatch, options):
    method = dare_ties if isinstance(options, DareTies) else dare_task_arithmetic
    generator = torch.Generator().manual_seed(0)
    base = {"a": torch.randn(70, 60, generator=generator), "b": torch.randn(9, generator=generator)}
    experts = [{name: x + torch.randn(x.shape, generator=generator) for name, x in base.items()} for _ in range(3)]
    whole = merge(method, options, base, experts, list(base), seed=4)
    monkeypatch.setattr(stack_module, "BLOCK", 100)
    monkeypatch.setattr(stack_module, "TURN", 700)
    monkeypatch.setattr(threshold_module, "DIRECT", 0)
    pieces = merge(method, options, base, experts, list(base), seed=4)
    assert all(torch.equal(whole[name], pieces[name]) for name in base)
    assert not torch.equal(whole["a"], merge(method, options, base, experts, list(base), seed=5)["a"])


@pytest.mark.parametrize("shape", [(), (5,), (30, 70)])
def test_a_whole_tensor_has_the_mask_of_its_pieces(shape):
    whole = torch.ones(2, *shape)
    drop(whole, 0.5, "w", 0, 3)
    flat = torch.ones(2, whole[0].numel())
    for start in range(0, flat.shape[1], 512):
        drop(flat[:, start : start + 512], 0.5, "w", start, 3)
    assert torch.equal(whole.reshape(2, -1), flat)


def test_torchs_generator_is_neither_asked_nor_moved():
    masks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        masks.append(draws("w", 2, 0, 100, seed=7))
        assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(*masks)


def test_seeds_parameters_and_experts_have_masks_of_their_own():
    n = 1 << 16
    streams = [*draws("w", 3, 0, n, seed=0), *draws("w", 1, 0, n, seed=1), *draws("v", 1, 0, n, seed=0)]
    correlations = np.corrcoef(np.array(streams, np.float64)) - np.eye(5)
    assert np.abs(correlations).max() < 5 / np.sqrt(n)


def test_draws_are_uniform():
    for expert in draws("w", 4, 0, 1 << 18, seed=0):
        assert stats.chisquare(np.bincount(expert >> 8, minlength=256)).pvalue > 1e-4
        assert stats.chisquare(np.bincount(expert & 255, minlength=256)).pvalue > 1e-4
        kept = expert >= 0.7 * LEVELS
        pairs = np.bincount(2 * kept[:-1] + kept[1:], minlength=4) / (len(kept) - 1)
        np.testing.assert_allclose(pairs, [0.49, 0.21, 0.21, 0.09], atol=0.005)


@pytest.mark.parametrize("drop_rate", [0.1, 0.7, 0.999])
def test_the_share_kept_is_the_one_that_is_rescaled_by(drop_rate):
    n = 1 << 20
    kept = torch.ones(1, n)
    drop(kept, drop_rate, "w", 0, 0)
    share = kept_share(drop_rate)
    assert abs(share - (1 - drop_rate)) <= 0.5 / LEVELS
    assert abs(kept.mean().item() - share) < 5 * np.sqrt(share * (1 - share) / n)


def test_the_mean_over_seeds_is_task_arithmetic():
    base = {"w": torch.zeros(50)}
    experts = [{"w": torch.linspace(-1, 1, 50)}, {"w": torch.ones(50)}]
    options = DareTaskArithmetic(scaling=0.5)
    runs = torch.stack([merge(dare_task_arithmetic, options, base, experts, ["w"], seed=i)["w"] for i in range(2000)])
    expected = 0.5 * (experts[0]["w"] + experts[1]["w"])
    spread = 0.5 * torch.sqrt((0.7 / 0.3) * (experts[0]["w"] ** 2 + 1) / 2000)
    assert ((runs.mean(0) - expected).abs() < 5 * spread).all()


def test_both_are_pefts_given_the_same_masks(monkeypatch):
    deltas = torch.randn(4, 30, 20, generator=torch.Generator().manual_seed(0))
    kept = torch.ones(4, 600)
    drop(kept, 0.7, "w", 0, 0)
    masks = iter([*kept.reshape(4, 30, 20), *kept.reshape(4, 30, 20)])
    monkeypatch.setattr(peft.torch, "bernoulli", lambda input: next(masks))
    base, experts = {"w": torch.zeros(30, 20)}, [{"w": delta} for delta in deltas]
    density = kept_share(0.7)
    theirs = peft.dare_linear(list(deltas), torch.ones(4), density)
    mine = merge(dare_task_arithmetic, DareTaskArithmetic(scaling=1.0), base, experts, ["w"])["w"]
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    theirs = peft.dare_ties(list(deltas), torch.ones(4), density)
    options = DareTies(scaling=1.0, density=1.0, zero_sign="positive")
    mine = merge(dare_ties, options, base, experts, ["w"])["w"]
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_base_is_left_as_it_is():
    base, deltas = torch.ones(3), torch.ones(2, 3)
    dare_task_arithmetic(base, deltas, DareTaskArithmetic(), At("w"))
    assert torch.equal(base, torch.ones(3))
