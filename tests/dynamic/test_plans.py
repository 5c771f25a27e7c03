"""Every plan gives the same numbers; which one is taken follows from counts and from this machine's speeds."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from oracles import dynamic as oracle

from twin_merging.dynamic import kernels
from twin_merging.dynamic import matrix as module
from twin_merging.dynamic import plan as plan_module
from twin_merging.dynamic import speeds as speed_module
from twin_merging.dynamic.matrix import RoutedMatrix
from twin_merging.dynamic.mixture import Mixture
from twin_merging.dynamic.plan import PLANS, Case, Explained, Planner, costs, explanation, static_cost
from twin_merging.dynamic.speeds import Speeds
from twin_merging.sparsifiers.svd import decompose

B, S, m, n, T = 5, 3, 7, 6, 4
SPEEDS = Speeds(product=2e11, thin=2e11, batched=1.8e11, mixed=6e10, bytes=8e10, call=2e-6)


def case_of(**other) -> Case:
    return Case(**{**{"B": 32, "S": 128, "m": 768, "n": 768, "T": 8, "k": 8, "r": 16, "resident": True}, **other})


def slow(x, weight, bias, delta, biases, weights) -> torch.Tensor:
    """One example at a time, in float64."""
    rows = []
    for b, w in enumerate(weights.double()):
        own = weight.double() + torch.tensordot(w, oracle.multiplied_out(delta), 1)
        y = x[b].double() @ own.mT
        y = y if bias is None else y + bias.double()
        rows.append(y if biases is None else y + w @ biases.double())
    return torch.stack(rows)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("bias", ["none", "shared", "own", "both"])
@pytest.mark.parametrize("kind", ["soft", "two", "one hot", "alike"])
@pytest.mark.parametrize("memory", [0, 10**6])
@pytest.mark.parametrize("shape", [(B, S, n), (B, n), (B, 2, S, n)])
def test_plans_agree_with_one_example_at_a_time(plan, factored, bias, kind, memory, shape, monkeypatch):
    monkeypatch.setattr(module, "block", lambda *_: (3, 2))
    torch.manual_seed(0)
    dense = torch.randn(T, m, n, dtype=torch.float64)
    delta = decompose(dense, 2) if factored else dense
    weight, x = torch.randn(m, n, dtype=torch.float64), torch.randn(*shape, dtype=torch.float64)
    shared = torch.randn(m, dtype=torch.float64) if bias in ("shared", "both") else None
    biases = torch.randn(T, m, dtype=torch.float64) if bias in ("own", "both") else None
    weights = torch.randn(B, T, dtype=torch.float64).softmax(-1)
    if kind == "alike":
        weights = weights[:1].expand(B, T)
    elif kind != "soft":
        weights = weights * (weights >= weights.topk(2 if kind == "two" else 1, -1).values[:, -1:])
    mixture, planner = Mixture(), Planner(plan, memory, SPEEDS)
    routed = RoutedMatrix(mixture, planner, delta, biases)
    with torch.no_grad(), mixture.of(weights):
        for _ in range(2):  # the second time with what the first one kept
            found = routed(x, weight, shared)
            torch.testing.assert_close(found, slow(x, weight, shared, delta, biases, weights), rtol=0, atol=1e-10)
    taken = planner.choices[""][1].plan
    few = factored and kind in ("two", "one hot")
    possible = {"dense", "grouped"} | ({"factored"} if factored else set()) | ({"gathered"} if few else set())
    assert taken == (plan if plan in possible else taken)
    assert taken in possible


@pytest.mark.skipif(not kernels.can_try_onednn("cpu", torch.float32), reason="this torch has no oneDNN")
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", ["soft", "one hot", "alike"])
def test_plans_agree_by_the_other_library_too(plan, kind, monkeypatch):
    monkeypatch.setattr(kernels, "SMALL", 0)
    monkeypatch.setattr(module, "block", lambda *_: (32, 2))
    torch.manual_seed(0)
    dense, weight, x = torch.randn(T, 48, 40), torch.randn(48, 40), torch.randn(B, 16, 40)
    shared, biases = torch.randn(48), torch.randn(T, 48)
    weights = {
        "soft": torch.randn(B, T).softmax(-1),
        "one hot": torch.eye(T)[: B % T + 3][torch.arange(B) % 3],
        "alike": torch.full((B, T), 0.2),
    }[kind]
    planner = Planner(plan, 10**6, replace(SPEEDS, kernel="onednn"))
    for delta in (dense, decompose(dense, 3)):
        mixture = Mixture()
        routed = RoutedMatrix(mixture, planner, delta, biases)
        with torch.no_grad(), mixture.of(weights):
            found = routed(x, weight, shared)
        expected = slow(x, weight, shared, delta, biases, weights)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_matrix_of_one_group_is_kept_for_a_sequence_where_there_is_room():
    delta, weight, size = decompose(torch.randn(T, m, n), 2), torch.randn(m, n), m * n * 4
    for memory, kept in ((size - 1, False), (size, True)):
        mixture, planner = Mixture(), Planner("grouped", memory, SPEEDS)
        first, second = RoutedMatrix(mixture, planner, delta), RoutedMatrix(mixture, planner, delta)
        with mixture.of(torch.full((B, T), 1 / T), lasting=True):
            for routed in (first, second):
                routed(torch.randn(B, S, n), weight, None)
            assert mixture.batch.held == (size if kept else 0)
            assert ((first, 0, torch.float32) in mixture.batch.known) == kept
            assert (second, 0, torch.float32) not in mixture.batch.known
        assert mixture.batch is None
        with mixture.of(torch.full((B, T), 1 / T)):
            first(torch.randn(B, S, n), weight, None)
            assert mixture.batch.held == 0


def test_what_was_copied_for_a_dtype_goes_with_the_module():
    """After a move the parts are the moved ones."""
    mixture, planner = Mixture(), Planner("dense", 10**6, SPEEDS)
    routed = RoutedMatrix(mixture, planner, decompose(torch.randn(T, m, n), 2))
    x, weight = torch.randn(B, S, n), torch.zeros(m, n)
    with mixture.of(torch.rand(B, T)):
        before = routed(x, weight, None)
        routed._apply(lambda part: 2 * part)  # U and V each
        torch.testing.assert_close(routed(x, weight, None), 4 * before)


def test_a_plan_is_chosen_anew_for_weights_of_another_pattern():
    delta, x, weight = decompose(torch.randn(T, m, n), 2), torch.randn(B, S, n), torch.randn(m, n)
    mixture, planner = Mixture(), Planner("gathered", 0, SPEEDS)
    routed = RoutedMatrix(mixture, planner, delta)
    for weights in (torch.eye(T)[torch.arange(B) % T], torch.rand(B, T)):
        with mixture.of(weights):
            found = routed(x, weight, None)
        torch.testing.assert_close(found.double(), slow(x, weight, None, delta, None, weights), rtol=1e-4, atol=1e-4)
    assert planner.choices[""][1].plan != "gathered"


def test_matrices_of_several_groups_are_not_kept_for_a_sequence():
    mixture, planner = Mixture(), Planner("grouped", 10**6, SPEEDS)
    routed = RoutedMatrix(mixture, planner, decompose(torch.randn(T, m, n), 2))
    with mixture.of(torch.rand(B, T), lasting=True):
        routed(torch.randn(B, S, n), torch.randn(m, n), None)
        assert mixture.batch.held == 0
    assert not planner.choices[""][0].lasting


def test_dense_deltas_stay_only_where_there_is_room():
    delta, x, weight = decompose(torch.randn(T, m, n), 2), torch.randn(B, S, n), torch.randn(m, n)
    size = T * m * n * 4
    for memory, kept in ((size - 1, False), (size, True)):
        mixture, planner = Mixture(), Planner("dense", memory, SPEEDS)
        first, second = RoutedMatrix(mixture, planner, delta), RoutedMatrix(mixture, planner, delta)
        with mixture.of(torch.full((B, T), 1 / T)):
            first(x, weight, None)
            second(x, weight, None)
        assert (first._held is not None) == kept
        assert second._held is None
        assert planner.left == (0 if kept else memory)


def test_a_plan_is_chosen_anew_for_a_batch_of_another_shape():
    mixture, planner = Mixture(), Planner("auto", 0, replace(SPEEDS, mixed=1e15, batched=1e15))
    routed = RoutedMatrix(mixture, planner, decompose(torch.randn(T, 64, 48), 32))
    weight, taken = torch.randn(64, 48), []
    for examples, tokens in ((2, 200), (2, 1)):
        with mixture.of(torch.rand(examples, T)):
            routed(torch.randn(examples, tokens, 48), weight, None)
        taken.append(planner.choices[""][1].plan)
    assert taken == ["dense", "factored"]


def test_costs_grow_as_the_work_does():
    def cheapest(**other) -> str:
        found = costs(case_of(**other), SPEEDS)
        return min(found, key=lambda plan: found[plan])

    assert cheapest(r=1) == "factored"
    assert cheapest(r=76) == "dense"  # whatever the rank, it costs the same
    assert cheapest(r=76, k=1) == "gathered"
    assert cheapest(r=76, S=1) == "factored"  # a matrix for a single token
    assert cheapest(r=76, distinct=1) == "grouped"  # all examples have the same
    assert cheapest(r=1, distinct=32) == "factored"
    assert cheapest(r=16, B=1, S=1, distinct=1) == "factored"
    assert cheapest(r=16, B=1, S=1, distinct=1, lasting=True) == "grouped"  # which is kept for the tokens that follow
    same = [costs(case_of(r=r), SPEEDS)["dense"] for r in (16, 76)]
    assert same[0] == same[1]
    assert costs(case_of(r=76, resident=False), SPEEDS)["dense"] > same[0]
    grown = [costs(case_of(T=experts, k=experts), replace(SPEEDS, call=0))["factored"] for experts in (2, 4, 8)]
    assert grown[2] - grown[1] == pytest.approx(2 * (grown[1] - grown[0]))
    assert set(costs(case_of(r=0), SPEEDS)) == {"dense"}
    assert "gathered" not in costs(case_of(), SPEEDS)
    calls = costs(case_of(), SPEEDS)["dense"] - costs(case_of(), replace(SPEEDS, call=0))["dense"]
    assert calls == pytest.approx(768 // 128 * 32 // 16 * 2 * SPEEDS.call)
    assert all(cost > 0.3 * static_cost(case_of(), SPEEDS) for cost in costs(case_of(k=2), SPEEDS).values())


def test_each_device_and_dtype_has_its_own_speeds(monkeypatch):
    monkeypatch.setattr(
        plan_module.Speeds, "of", lambda device, width, kernels: replace(SPEEDS, product=float(width), kernel=kernels + device)
    )  # fmt: skip
    planner = Planner(kernels="stock")
    for device, width in (("cpu", 4), ("cpu", 2), ("cuda", 4)):
        found = planner.speeds_of(device, width)
        assert (found.product, found.kernel) == (width, f"stock{device}")


def test_speeds_are_measured_once_a_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []
    monkeypatch.setattr(speed_module, "measure", lambda *given: calls.append(given) or SPEEDS)
    assert Speeds.of("cpu") == Speeds.of("cpu") == SPEEDS
    assert len(calls) == 1
    Speeds.of("cpu", 2)
    assert calls[1] == ("cpu", torch.bfloat16, "auto")
    (tmp_path / "twin_merging/speeds.json").write_text("damaged")
    assert Speeds.of("cpu") == SPEEDS
    assert len(json.loads((tmp_path / "twin_merging/speeds.json").read_text())) == 1


def test_of_several_at_once_one_measures_and_all_have_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def measure(*_) -> Speeds:
        calls.append(1)
        time.sleep(0.1)
        return replace(SPEEDS, product=1e9 * len(calls))

    monkeypatch.setattr(speed_module, "measure", measure)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: Speeds.of("cpu"), range(4)))
    assert len(calls) == 1
    assert set(found) == {replace(SPEEDS, product=1e9)}


def test_speeds_where_nothing_can_be_written(read_only, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(read_only))
    monkeypatch.setattr(speed_module, "measure", lambda *given: SPEEDS)
    assert Speeds.of("cpu") == SPEEDS


@pytest.fixture
def read_only(tmp_path):
    """A place that no folder can be made in, for anyone: it is a file."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file"


def test_real_speeds_are_plausible():
    found = speed_module.measure("cpu", torch.float32)
    assert found.kernel in ("stock", "onednn")
    assert all(value > 1e7 for name, value in vars(found).items() if name not in ("kernel", "call"))
    assert 1e-8 < found.call < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_trained_while_speeds_are_measured_draws_the_same_numbers(dtype):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    speed_module.measure("cpu", dtype)
    assert torch.equal(torch.get_rng_state(), before)


def test_layers_that_do_the_same_are_explained_together():
    layers = [Explained(f"Model.layer.{number}.out", "factored", 1.0 + number) for number in range(3)]
    text = explanation([*layers, Explained("Model.pooler", "dense", 2.0)])
    assert text.splitlines()[0].split()[:4] == ["Model.layer.*.out", "factored", "3", "x"]
    assert "2.00" in text
    assert len(text.splitlines()) == 2
