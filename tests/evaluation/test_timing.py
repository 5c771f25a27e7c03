from __future__ import annotations

from statistics import median

from twin_merging.evaluation.timing import LEAST, MOST, in_turns


class Machine:
    """A clock that only work moves on."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def work(self, name: str, seconds: float):
        def run() -> None:
            self.log.append(name)
            self.now += seconds

        return run

    def clock(self) -> float:
        return self.now


def test_ways_take_turns_after_one_run_each_that_is_not_measured():
    machine = Machine()
    found = in_turns({"a": machine.work("a", 0.1), "b": machine.work("b", 0.2)}, clock=machine.clock)
    assert machine.log == ["a", "b"] * (MOST + 1)
    assert {name: [round(each, 9) for each in times] for name, times in found.items()} == {
        "a": [0.1] * MOST,
        "b": [0.2] * MOST,
    }


def test_what_takes_long_is_measured_the_least_times():
    machine = Machine()
    found = in_turns({"a": machine.work("a", 5.0), "b": machine.work("b", 6.0)}, budget=3.0, clock=machine.clock)
    assert [len(times) for times in found.values()] == [LEAST, LEAST]


def test_it_stops_once_the_budget_is_spent():
    machine = Machine()
    found = in_turns({"a": machine.work("a", 0.5), "b": machine.work("b", 0.3)}, budget=3.0, clock=machine.clock)
    assert len(found["a"]) == 4  # 3.2 seconds


def test_the_median_does_not_see_a_pause():
    machine, rounds = Machine(), iter(range(MOST + 1))

    def paused() -> None:
        machine.now += 60.0 if next(rounds) == 3 else 0.1

    found = in_turns({"a": paused}, budget=100.0, clock=machine.clock)
    assert round(median(found["a"]), 9) == 0.1
