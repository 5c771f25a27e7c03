from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import sparsifiers as oracle
from safetensors.torch import save_file

from twin_merging.config import Magnitude
from twin_merging.errors import UserError
from twin_merging.merging.apply import modularize
from twin_merging.merging.stack import Stack
from twin_merging.sparsifiers.magnitude import keep_largest
from twin_merging.sparsifiers.sparse import Sparse, dense

SHAPES = {"a": (6, 7), "b": (5,), "c": (2, 3, 4), "d": (), "e": (1, 9), "f": (0, 3)}
KINDS = ["random", "ties", "equal", "opposite signs", "zeros"]


def stack_of(kind: str = "random", experts: int = 3, seed: int = 0, dtype=torch.float32, shapes=SHAPES) -> Stack:
    """θ_t − θ_s as given, θ_s being zeros."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(shape: tuple[int, ...]) -> torch.Tensor:
        drawn = torch.randn(shape, generator=generator)
        made = {
            "random": drawn, "ties": drawn.sign() * (drawn.abs() * 2).ceil(), "equal": torch.ones(shape),
            "opposite signs": drawn.sign(), "zeros": torch.zeros(shape),
        }  # fmt: skip
        return made[kind].to(dtype)

    shared = {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}
    return Stack(shared, [{name: numbers(shape) for name, shape in shapes.items()} for _ in range(experts)], shapes)


def kept_by(stack: Stack, options: Magnitude) -> dict[str, Sparse | torch.Tensor]:
    kept: dict[str, Sparse | torch.Tensor] = {}
    modularize(kept.__setitem__, keep_largest, options, stack)
    return kept


def compressed(stack: Stack) -> list[str]:
    return [name for name in stack.names if stack.base[name].dim() > 1]


def groups(stack: Stack, options: Magnitude) -> list[list[str]]:
    return [compressed(stack)] if options.threshold == "global" else [[name] for name in compressed(stack)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", ["global", "per_tensor"])
@pytest.mark.parametrize(("key", "share"), [("fraction", 0.1), ("fraction", 1.0), ("energy", 0.6), ("energy", 1.0)])
def test_keeps_what_the_oracle_keeps(key, share, threshold, kind, dtype):
    stack, options = stack_of(kind, dtype=dtype), Magnitude(**{key: share}, threshold=threshold)
    kept = kept_by(stack, options)
    find = {"fraction": oracle.fraction_threshold, "energy": oracle.energy_threshold}[key]
    for names in groups(stack, options):
        for t, expert in enumerate(stack.experts):
            numbers = [number for name in names for number in expert[name].double().flatten().tolist()]
            for name in names:
                values = expert[name].double().numpy()
                expected = oracle.at_least(values, find(numbers, share)) if numbers else values
                assert np.array_equal(dense(kept[name])[t].double().numpy(), expected)
    for name in set(stack.names) - set(compressed(stack)):
        assert torch.equal(kept[name], stack.whole(name)[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", ["global", "per_tensor"])
def test_a_budget_is_never_exceeded_and_used_where_it_can_be(threshold, kind, tmp_path):
    shapes = {**SHAPES, "g": (200, 50)}
    stack = stack_of(kind, shapes=shapes)
    for budget in (8_000, 20_000, 10**6):
        tensors = {}
        for name, kept in kept_by(stack, Magnitude(budget=budget, threshold=threshold)).items():
            parts = {"": kept} if isinstance(kept, torch.Tensor) else {f".{k}": v for k, v in kept._asdict().items()}
            tensors |= {f"{name}{field}": part for field, part in parts.items()}
        save_file(tensors, tmp_path / "file.safetensors")
        size = (tmp_path / "file.safetensors").stat().st_size
        assert size <= budget
        if kind == "random" and budget < 10**6:
            assert size > 0.95 * budget
        if budget == 10**6:
            assert torch.equal(dense(Sparse(*(tensors[f"g.{key}"] for key in Sparse._fields))), stack.whole("g")[1])


def test_a_budget_that_nothing_fits_into_says_which_would():
    stack = stack_of()
    with pytest.raises(UserError) as caught:
        kept_by(stack, Magnitude(budget=1))
    smallest = int(caught.value.nearest)
    kept = kept_by(stack, Magnitude(budget=smallest))
    assert sum(int(kept[name].counts.sum()) for name in compressed(stack)) == 0
    with pytest.raises(UserError):
        kept_by(stack, Magnitude(budget=smallest - 1))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.permutations(range(3)),
    st.sampled_from([0.25, 2.0, -1.0]),
    st.sampled_from(["fraction", "energy"]),
)
def test_order_of_experts_scale_and_sign_do_not_matter(seed, order, factor, key):
    stack, options = stack_of(seed=seed), Magnitude(**{key: 0.3})
    moved = Stack(
        stack.base, [{name: factor * tensor for name, tensor in stack.experts[t].items()} for t in order], stack.names
    )
    before, after = kept_by(stack, options), kept_by(moved, options)
    for name in compressed(stack):
        assert torch.equal(dense(after[name]), factor * dense(before[name])[list(order)])


def test_more_energy_keeps_more():
    stack = stack_of()
    counts = [
        sum(int(kept_by(stack, Magnitude(energy=share))[name].counts.sum()) for name in compressed(stack))
        for share in (0.1, 0.5, 0.9, 1.0)
    ]
    assert all(fewer < more for fewer, more in itertools.pairwise(counts))
