from __future__ import annotations

import logging

import pytest

from twin_merging import progress as module
from twin_merging.progress import Progress, format_seconds, progress, track


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"), (9.84, "9.8s"), (59.4, "59.4s"), (60, "1m00s"), (75.2, "1m15s"), (119.6, "2m00s"),
        (3599.6, "1h00m"), (3600, "1h00m"), (7384, "2h03m"), (90000, "25h00m"),
    ],
)  # fmt: skip
def test_seconds_as_people_write_them(seconds, text):
    assert format_seconds(seconds) == text


def test_just_below_a_minute_is_not_60_seconds():
    assert format_seconds(59.97) == "1m00s"


class Clock:
    """A clock that a test moves."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def lines(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("twin_merging"), "propagate", True)
    caplog.set_level(logging.INFO, "twin_merging")
    return lambda: [record.getMessage() for record in caplog.records]


def test_off_a_terminal_a_line_every_few_seconds_with_the_time_left(clock, lines):
    bar = Progress("work", total=100, unit="rows", every=5)
    for _ in range(20):
        clock.now += 1
        bar.advance(2)
    assert lines() == [
        "  work  10/100 rows, ETA 45.0s",
        "  work  20/100 rows, ETA 40.0s",
        "  work  30/100 rows, ETA 35.0s",
        "  work  40/100 rows, ETA 30.0s",
    ]


def test_what_is_quick_writes_nothing(clock, lines):
    with progress("work", 100) as bar:
        for _ in range(100):
            bar.advance()
    assert lines() == []
    assert bar.done == 100


def test_the_end_writes_nothing(clock, lines):
    bar = Progress("work", total=2)
    clock.now += 60
    bar.update(2)
    assert lines() == []


def test_no_progress_yet_divides_by_nothing(clock, lines):
    bar = Progress("work", total=10, every=5)
    clock.now += 6
    bar.update(0)
    assert lines() == ["  work  0/10 step, ETA 1m00s"]


def test_track_yields_all_and_counts(clock, lines):
    seen = []
    for item in track(iter("abc"), "letters", unit="letters"):
        clock.now += 6
        seen.append(item)
    assert seen == ["a", "b", "c"]
    assert lines() == ["  letters  1/3 letters, ETA 12.0s", "  letters  2/3 letters, ETA 6.0s"]


def test_an_empty_total_is_no_error():
    assert list(track([], "nothing")) == []


def test_on_a_terminal_a_bar_is_drawn_and_removed(monkeypatch, lines):
    drawn = []

    class Bar:
        def start(self):
            drawn.append("start")

        def update(self, task, completed):
            drawn.append(completed)

        def stop(self):
            drawn.append("stop")

    monkeypatch.setattr(module, "_rich_bar", lambda label, total: (Bar(), 0))
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True, raising=False)
    with pytest.raises(RuntimeError), progress("work", 3) as bar:  # noqa: PT012
        bar.advance()
        bar.advance()
        raise RuntimeError
    assert drawn == ["start", 1, 2, "stop"]
    assert lines() == []
