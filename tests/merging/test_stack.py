"""Reading base and experts: whole or in pieces, the same numbers; in parallel, within the memory allowed."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from twin_merging.merging import stack as module
from twin_merging.merging.stack import Stack, in_parallel


def stack_of(shape, dtype=torch.float32, experts=3) -> Stack:
    generator = torch.Generator().manual_seed(0)
    states = [{"w": torch.randn(shape, generator=generator).to(dtype)} for _ in range(experts + 1)]
    return Stack(states[0], states[1:], ["w"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
def test_deltas_are_differences_in_float32_or_wider(shape, dtype):
    stack = stack_of(shape, dtype)
    base, deltas = stack.whole("w")
    assert deltas.shape == (3, *shape)
    assert deltas.dtype == base.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for t, expert in enumerate(stack.experts):
        expected = expert["w"].double() - stack.base["w"].double()
        torch.testing.assert_close(deltas[t].double(), expected, rtol=1e-6, atol=1e-7)


def test_an_expert_may_be_wider_than_the_base():
    stack = Stack({"w": torch.ones(2, dtype=torch.bfloat16)}, [{"w": torch.full((2,), 1.0001)}], ["w"])
    torch.testing.assert_close(stack.whole("w")[1][0], torch.full((2,), 1e-4), rtol=1e-2, atol=0)
    (_, _, piece), *_ = stack.pieces("w")
    torch.testing.assert_close(piece[0], torch.full((2,), 1e-4), rtol=1e-2, atol=0)


@pytest.mark.parametrize("of", ["deltas", "experts"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_are_the_whole_in_order(monkeypatch, of, dtype):
    monkeypatch.setattr(module, "BLOCK", 4)
    stack = stack_of((3, 5), dtype)
    base, stacked = stack.whole("w", of)
    pieces = [(start, here.clone(), piece.clone()) for start, here, piece in stack.pieces("w", of=of)]
    assert [start for start, _, _ in pieces] == [0, 4, 8, 12]
    assert torch.equal(torch.cat([here for _, here, _ in pieces]), base.flatten())
    assert torch.equal(torch.cat([piece for _, _, piece in pieces], 1), stacked.flatten(1))


def test_views_are_the_experts_uncopied():
    stack = stack_of((3, 5))
    base, views = stack.whole("w", "views")
    assert base.data_ptr() == stack.base["w"].data_ptr()
    assert [view.data_ptr() for view in views] == [expert["w"].data_ptr() for expert in stack.experts]
    ((start, here, pieces),) = stack.pieces("w", of="views")
    assert start == 0
    assert torch.equal(here, base.flatten())
    assert all(torch.equal(piece, view.flatten()) for piece, view in zip(pieces, views, strict=True))


@pytest.mark.parametrize(("dtype", "starts"), [(torch.float32, [0, 4, 8, 12]), (torch.bfloat16, [*range(15)])])
def test_views_come_in_larger_pieces_where_none_is_copied(monkeypatch, dtype, starts):
    monkeypatch.setattr(module, "BLOCK", 1)
    stack = stack_of((3, 5), dtype)
    base, views = stack.whole("w", "views")
    pieces = list(stack.pieces("w", of="views"))
    assert [start for start, _, _ in pieces] == starts
    assert torch.equal(torch.cat([here for _, here, _ in pieces]), base.flatten())
    for number, view in enumerate(views):
        assert torch.equal(torch.cat([piece[number] for _, _, piece in pieces]), view.flatten())


def test_turns_cover_every_number_once(monkeypatch):
    monkeypatch.setattr(module, "TURN", 4)
    assert list(stack_of((3, 3)).turns(["w"])) == [("w", 0, 4), ("w", 4, 8), ("w", 8, 9)]
    assert list(stack_of((0,)).turns(["w"])) == [("w", 0, 0)]


def test_integer_buffers_are_no_parameters():
    state = {"w": torch.ones(2), "ids": torch.arange(2)}
    assert Stack(state, [state], ["w", "ids"]).names == ["w"]


@pytest.mark.parametrize(("small", "expected"), [(0, 10), (8, 10), (12, 12)])
def test_jobs_in_flight_need_no_more_than_the_largest_alone_or_than_small_ones(small, expected, monkeypatch):
    monkeypatch.setattr(module, "SMALL", small)
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: range(3), raising=False)
    running, most, lock = 0, 0, threading.Lock()

    def job(cost: int) -> int:
        nonlocal running, most
        with lock:
            running += cost
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= cost
        return cost

    costs = [4, 4, 4, 10, 1, 3, 2, 6, 10, 5]
    done = [result for _, result in in_parallel(job, [(cost,) for cost in costs], "test", cost=lambda cost: cost)]
    assert sorted(done) == sorted(costs)
    assert most == expected


def test_a_failing_job_ends_the_others():
    started = []

    def job(number: int) -> None:
        started.append(number)
        time.sleep(0.01)
        if number == 1:
            raise ValueError("one is bad")

    with pytest.raises(ValueError, match="one is bad"):
        list(in_parallel(job, [(number,) for number in range(200)], "test"))
    assert len(started) < 100


def test_torch_has_its_threads_back_afterwards():
    before = torch.get_num_threads()
    list(in_parallel(lambda number: number, [(1,), (2,)], "test"))
    assert torch.get_num_threads() == before
