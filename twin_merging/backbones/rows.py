"""Rows as a model reads them, before they are put side by side: in memory, or made when they are asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

Row = dict[str, Any]


class Inputs(Protocol):
    """Rows as a model reads them, before they are put into a batch; ``lengths`` are their tokens."""

    @property
    def rows(self) -> Sequence[Row]: ...

    @property
    def lengths(self) -> list[int]: ...


class WithMore(Sequence[Row]):
    """Rows, each with what ``more`` has for it, such as its label."""

    def __init__(self, rows: Sequence[Row], more: Sequence[Row]):
        self.rows, self.more = rows, more

    def __len__(self) -> int:
        return len(self.more)

    def __getitem__(self, row):
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Row]:
        return [{**row, **self.more[number]} for number, row in zip(rows, taken(self.rows, rows), strict=True)]

    def set_epoch(self, epoch: int) -> None:
        """Rows that are drawn anew each epoch are from now on those of this one, counted from 0."""
        set_epoch(self.rows, epoch)


class Joined(Sequence[Row]):
    """The rows of several, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Row]]):
        self.parts, self._ends = parts, [*accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, row):
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Row]:
        by_part: dict[int, list[int]] = {}
        for row in rows:
            by_part.setdefault(bisect_right(self._ends, row), []).append(row)
        found: dict[int, Row] = {}
        for index, mine in by_part.items():
            part, end = self.parts[index], self._ends[index]
            found |= zip(mine, taken(part, [row - end + len(part) for row in mine]), strict=True)
        return [found[row] for row in rows]

    def set_epoch(self, epoch: int) -> None:
        """The same of each."""
        for part in self.parts:
            set_epoch(part, epoch)


def taken(rows: Sequence[Row], numbers: Sequence[int]) -> list[Row]:
    """Some rows, at once where ``rows`` can make several side by side; torch's loaders ask so too."""
    if hasattr(rows, "__getitems__"):
        return rows.__getitems__(numbers)
    return [rows[number] for number in numbers]


class Together:
    """Several tasks' inputs as one, one task's rows after the other's."""

    def __init__(self, inputs: Sequence[Inputs]):
        self.rows: Sequence[Row] = Joined([each.rows for each in inputs])
        self.lengths = [length for each in inputs for length in each.lengths]


def set_epoch(rows: Sequence[Row], epoch: int) -> None:
    """Tell rows which epoch they are made for, counted from 0, if any hangs on it."""
    if hasattr(rows, "set_epoch"):
        rows.set_epoch(epoch)
