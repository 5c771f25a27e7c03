"""What merging leaves alone, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from oracles import merging as oracle

from twin_merging.config import NoSparsifier, Svd, TaskArithmetic
from twin_merging.errors import UserError
from twin_merging.merging.apply import merge, merge_into, modularize
from twin_merging.merging.stack import Stack
from twin_merging.merging.task_arithmetic import task_arithmetic
from twin_merging.merging.twin import exclusive_knowledge
from twin_merging.parameters import select
from twin_merging.sparsifiers.none import keep
from twin_merging.sparsifiers.svd import Factors, truncate

OPTIONS = TaskArithmetic(scaling=0.5)


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)

    def encoder(shift: int) -> dict[str, torch.Tensor]:
        return {
            "a.weight": torch.randn(3, 4, generator=generator),
            "a.bias": torch.randn(3, generator=generator),
            "norm.weight": torch.randn(4, generator=generator),
            "position_ids": torch.arange(4) + shift,
        }

    return encoder(0), [encoder(1), encoder(2)]


def test_integer_buffers_keep_the_base_values(case):
    base, experts = case
    merged = merge(task_arithmetic, OPTIONS, base, experts, list(base))
    assert merged["position_ids"].dtype == torch.int64
    assert torch.equal(merged["position_ids"], base["position_ids"])
    assert list(merged) == list(base)


def test_only_selected_parameters_merge(case):
    base, experts = case
    chosen = select(base, [".*"], [".*bias", "norm.*"])
    assert chosen == ["a.weight", "position_ids"]
    merged = merge(task_arithmetic, OPTIONS, base, experts, chosen)
    for name in ("a.bias", "norm.weight"):
        assert torch.equal(merged[name], base[name])
    expected = oracle.task_arithmetic(base["a.weight"].numpy(), [expert["a.weight"].numpy() for expert in experts], 0.5)
    torch.testing.assert_close(merged["a.weight"].double(), torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_inputs_are_left_as_they_are(case):
    base, experts = case
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in (base, *experts)]
    merge(task_arithmetic, OPTIONS, base, experts, list(base))
    for state, copy in zip((base, *experts), before, strict=True):
        assert all(torch.equal(state[name], copy[name]) for name in copy)


def test_a_method_that_changes_a_shape_is_refused(case):
    base, experts = case
    with pytest.raises(UserError, match="changed a tensor's shape") as caught:
        merge(lambda base, deltas, options: deltas, OPTIONS, base, experts, ["a.weight"])
    assert caught.value.key == "merge_method=task_arithmetic: a.weight"
    assert caught.value.found == [2, 3, 4]
    assert caught.value.expected == [3, 4]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_method_that_gives_nan_is_refused(case, value):
    base, experts = case

    def spoil(base, deltas, options):
        merged = base.clone()
        merged.view(-1)[0] = value
        return merged

    with pytest.raises(UserError, match="NaN or infinity") as caught:
        merge(spoil, OPTIONS, base, experts, ["a.weight"])
    assert caught.value.key == "merge_method=task_arithmetic: a.weight"
    assert "1 of 12" in caught.value.found


def test_a_sum_that_the_dtype_cannot_hold_is_refused():
    # 120,000 is finite in float32, where merging happens, and infinite in float16, where the result goes
    base = {"w": torch.zeros(2, dtype=torch.float16)}
    experts = [{"w": torch.full((2,), 60000.0, dtype=torch.float16)}] * 2
    with pytest.raises(UserError, match="NaN or infinity"):
        merge(task_arithmetic, TaskArithmetic(scaling=1.0), base, experts, ["w"])


@pytest.mark.parametrize("method", [task_arithmetic, lambda base, deltas, options: base + deltas.sum(0)])
def test_the_result_has_the_dtype_that_is_asked_for(method):
    base = {"w": torch.ones(3, dtype=torch.bfloat16)}
    experts = [{"w": torch.full((3,), 1.0 + 2**-10)}]  # which bfloat16 cannot hold
    written = {}
    merge_into(
        lambda name, start, piece: written.update({name: piece.clone()}), method, TaskArithmetic(scaling=1.0),
        Stack(base, experts, ["w"]), dtype=torch.float32,
    )  # fmt: skip
    assert torch.equal(written["w"], experts[0]["w"])
    with pytest.raises(UserError, match="NaN or infinity"):
        merge_into(
            lambda *_: None, method, TaskArithmetic(scaling=1.0),
            Stack(base, [{"w": torch.full((3,), 1e5)}], ["w"]), dtype=torch.float16,
        )  # fmt: skip


def test_modularize_gives_exclusive_knowledge_of_selected_floats(case):
    base, experts = case
    shared = merge(task_arithmetic, OPTIONS, base, experts, list(base))
    exclusive = exclusive_knowledge(shared, experts, ["a.weight", "a.bias", "position_ids"])
    parts: dict[str, torch.Tensor] = {}
    modularize(parts.__setitem__, keep, NoSparsifier(), exclusive)
    assert set(parts) == {"a.weight", "a.bias"}
    for name, delta in parts.items():
        expected = oracle.exclusive_knowledge([expert[name].numpy() for expert in experts], shared[name].numpy())
        torch.testing.assert_close(delta.double(), torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_modularize_factors_matrices_and_keeps_vectors(case):
    base, experts = case
    parts: dict[str, Factors | torch.Tensor] = {}
    exclusive = exclusive_knowledge(base, experts, ["a.weight", "a.bias"])
    modularize(parts.__setitem__, truncate, Svd(rank=2), exclusive)
    assert isinstance(parts["a.weight"], Factors)
    assert parts["a.bias"].shape == (2, 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_exclusive_knowledge_that_is_not_finite_is_refused(case, value):
    base, experts = case
    experts[1]["a.weight"][0, 0] = value
    with pytest.raises(UserError, match="NaN or infinity") as caught:
        modularize(lambda *_: None, keep, NoSparsifier(), exclusive_knowledge(base, experts, ["a.weight"]))
    assert caught.value.key == "exclusive knowledge: a.weight"
