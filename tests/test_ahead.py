"""Threads that work ahead: in order, so far and no farther, and with the errors of what they do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from twin_merging.ahead import ahead


@pytest.mark.parametrize(("most", "threads"), [(1, 1), (2, 1), (3, 4), (50, 4)])
def test_results_come_in_order_and_no_more_items_are_taken_than_may_wait(most: int, threads: int):
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            taken.append(item)
            yield item

    def slowest_first(item: int) -> int:
        time.sleep(0.002 * (20 - item) / 20)
        return item * item

    for number, result in enumerate(ahead(slowest_first, items(), most, threads)):
        assert result == number * number
        assert len(taken) <= number + most
    assert len(taken) == 20


def test_the_next_one_is_made_while_the_caller_works():
    made = [threading.Event() for _ in range(3)]
    for number, _ in enumerate(ahead(lambda item: made[item].set(), range(3), most=2)):
        if number < 2:
            assert made[number + 1].wait(timeout=60)


def test_an_error_is_raised_where_its_result_is_asked_for():
    def half(item: int) -> int:
        if item == 2:
            raise ValueError("odd")
        return item

    found = ahead(half, range(5), most=2, threads=2)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ValueError, match="odd"):
        next(found)


def test_what_is_not_asked_for_is_not_computed():
    done: list[int] = []
    found = ahead(done.append, range(100), most=2)
    next(found)
    found.close()
    assert len(done) <= 2
