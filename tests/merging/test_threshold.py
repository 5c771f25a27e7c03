"""The k-th largest magnitude against sorting, however the numbers are distributed and however they are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twin_merging.merging import stack as stack_module
from twin_merging.merging import threshold as module
from twin_merging.merging.stack import Stack
from twin_merging.merging.threshold import kth_largest

N = 4000
SHARES = (0.0, 0.001, 0.2, 0.5, 0.999, 1.0)


def distributions() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=N)
    return {
        "normal": normal,
        "sorted": np.sort(normal),
        "heavy tails": rng.standard_cauchy(N) ** 3,
        "all equal": np.where(normal > 0, 0.5, -0.5),
        "all zero": np.zeros(N),
        "mostly zero": np.where(rng.random(N) < 0.9, 0, normal),
        "two sizes": np.where(rng.random(N) < 0.2, 1.0, -0.25),
        "grid": np.round(normal * 4) / 4,
        "one large": np.where(np.arange(N) == 17, 1e30, 0.0),
        "tiny": normal * 1e-42,
        "periodic": np.resize([0.0, 0.0, 0.0, 5.0], N),
    }


def ranks(n: int) -> list[int]:
    return [int(share * n) for share in SHARES]


def expected(values: np.ndarray, k: int) -> float:
    if k < 1:
        return float("inf")
    return float("-inf") if k > len(values) else float(np.sort(np.abs(values))[::-1][k - 1])


def stack_of(experts: list[dict[str, np.ndarray]], dtype: torch.dtype = torch.float32) -> Stack:
    states = [{name: torch.from_numpy(values).to(dtype) for name, values in expert.items()} for expert in experts]
    base = {name: torch.zeros_like(values) for name, values in states[0].items()}
    return Stack(base, states, list(base))


def check(stack: Stack) -> None:
    """Both for each tensor and for all together."""
    for per_tensor in (True, False):
        found = kth_largest(stack, ranks, per_tensor=per_tensor)
        assert set(found) == set(stack.names)
        for name, values in found.items():
            assert values.shape == (len(SHARES), len(stack))
            among = [name] if per_tensor else stack.names
            for t, expert in enumerate(stack.experts):
                every = np.concatenate([expert[each].double().numpy().ravel() for each in among])
                for found_here, k in zip(values[:, t].tolist(), ranks(len(every)), strict=True):
                    assert found_here == expected(every, k), (name, t, k)


@pytest.fixture
def brackets(monkeypatch):
    """A bracket for the smallest tensor, and many small pieces."""
    monkeypatch.setattr(module, "DIRECT", 0)
    monkeypatch.setattr(module, "SAMPLE", 500)
    monkeypatch.setattr(stack_module, "BLOCK", 256)
    monkeypatch.setattr(stack_module, "TURN", 1024)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", distributions())
def test_brackets_give_what_sorting_gives(brackets, name, dtype):
    values = distributions()[name]
    rng = np.random.default_rng(1)
    experts = [{"a": v[: N // 3].reshape(-1, 1), "b": v[N // 3 :]} for v in (values, rng.permutation(values), -values)]
    check(stack_of(experts, dtype))


@pytest.mark.parametrize("name", distributions())
def test_small_vectors_are_selected_from_directly(name):
    check(stack_of([{"a": distributions()[name], "scalar": np.array(-3.0), "none": np.empty((0, 4))}]))


def test_experts_of_very_different_distributions_are_found_in_the_same_reading(brackets, monkeypatch):
    readings = []
    read = module._read
    monkeypatch.setattr(module, "_read", lambda *given: readings.append(1) or read(*given))
    stack = stack_of([{"w": values} for values in distributions().values()])
    kth_largest(stack, lambda n: (n // 5,), per_tensor=False)
    assert len(readings) == 1


def test_a_bracket_that_misses_is_widened(brackets, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 50)
    readings = []
    read = module._read
    monkeypatch.setattr(module, "_read", lambda *given: readings.append(1) or read(*given))
    values = np.random.default_rng(0).normal(size=N)
    values[::83] = 1000  # N / SAMPLE, without small factors: those that are sampled
    values[1::3] = 1000  # so many that they are counted and not kept, and still fewer than half
    check(stack_of([{"w": values}]))
    assert len(readings) > 2  # one for each call of kth_largest, had no bracket missed


def test_few_numbers_are_kept_in_memory(brackets, monkeypatch):
    kept = []
    pick = module._Tally.pick
    monkeypatch.setattr(
        module._Tally, "pick", lambda self, *given: kept.append(sum(map(len, self.inside))) or pick(self, *given)
    )
    monkeypatch.setattr(module, "SAMPLE", 1 << 14)
    for values in (np.random.default_rng(0).normal(size=1 << 18), np.resize([0.0, 0.0, 0.0, 1.0, 2.0], 1 << 18)):
        kth_largest(stack_of([{"w": values}]), lambda n: (n // 5,), per_tensor=False)
    assert max(kept) < 0.06 * (1 << 18)


def test_nan_ends_and_is_left_to_the_merge(brackets):
    values = np.full(N, np.nan)
    values[:10] = 1.0
    assert kth_largest(stack_of([{"w": values}]), lambda n: (100,), per_tensor=False)["w"].shape == (1, 1)


def test_infinite_numbers_are_the_largest(brackets):
    values = np.random.default_rng(0).normal(size=N)
    values[5] = -np.inf
    found = kth_largest(stack_of([{"w": values}]), lambda n: (1, 2), per_tensor=False)["w"]
    assert found[0].item() == float("inf")
    assert found[1].item() == np.sort(np.abs(values.astype(np.float32)))[-2]


@pytest.mark.parametrize("direct", [0, 1 << 20])
def test_a_change_is_made_before_ranking(monkeypatch, direct):
    monkeypatch.setattr(module, "DIRECT", direct)
    values = np.random.default_rng(0).normal(size=N)
    stack = stack_of([{"w": values}, {"w": values}])

    def change(name: str, start: int, deltas: torch.Tensor) -> None:
        deltas[1] *= 3

    found = kth_largest(stack, ranks, per_tensor=True, change=change)["w"]
    for share, (first, second) in zip(SHARES, found.tolist(), strict=True):
        k = int(share * N)
        assert first == expected(values.astype(np.float32), k)
        assert second == expected(values.astype(np.float32) * np.float32(3), k)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-8, 8, width=16), max_size=60),
    k=st.integers(-1, 61),
    direct=st.sampled_from([0, 1 << 20]),
)
def test_any_rank_of_any_numbers(values, k, direct):
    numbers = np.array(values, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DIRECT", direct)
        patch.setattr(module, "SAMPLE", 7)
        found = kth_largest(stack_of([{"w": numbers}]), lambda n: (k,), per_tensor=False)["w"]
    assert found.item() == expected(numbers, k)
