"""Progress with an ETA, on a terminal as a bar and elsewhere as an occasional line."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

log = logging.getLogger("twin_merging")
Item = TypeVar("Item")


class Progress:
    """A count towards ``total`` of ``unit``; shows share done, rate and ETA.

    On a terminal it redraws one line through rich; in a file or pipe it logs a line every ``every`` seconds, so that
    cluster logs stay short.
    """

    def __init__(self, label: str, total: int, unit: str = "step", every: float = 5.0):
        self.label, self.total, self.unit, self.every = label, max(int(total), 1), unit, every
        self.done = 0
        self._start = self._last = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar, self._task = _rich_bar(label, self.total)
            self._bar.start()

    def advance(self, amount: int = 1) -> None:
        """Count ``amount`` more."""
        self.update(self.done + amount)

    def update(self, done: int) -> None:
        """Set the count."""
        self.done = done
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif now - self._last >= self.every and done < self.total:
            self._last = now
            left = (now - self._start) * (self.total - done) / max(done, 1)
            log.info("  %s  %d/%d %s, ETA %s", self.label, done, self.total, self.unit, format_seconds(left))

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def progress(label: str, total: int, unit: str = "step") -> Iterator[Progress]:
    """A ``Progress`` that is closed at the end of the block."""
    bar = Progress(label, total, unit)
    try:
        yield bar
    finally:
        bar.close()


def track(items: Iterable[Item], label: str, total: int | None = None, unit: str = "step") -> Iterator[Item]:
    """Yield ``items`` and show progress over them."""
    if total is None:
        items = list(items)
        total = len(items)
    with progress(label, total, unit) as bar:
        for item in items:
            yield item
            bar.advance()


def format_seconds(seconds: float) -> str:
    """``75.2`` -> ``1m15s``; below a minute one decimal: ``9.8s``."""
    if seconds < 59.95:  # what rounds to 60.0 is a minute
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def _rich_bar(label: str, total: int):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    return bar, bar.add_task(label, total=total)
