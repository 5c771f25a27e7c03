"""Rows as a model reads them, before they are put side by side: in memory, or made when they are asked for."""

from __future__ import annotations

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


def taken(rows: Sequence[Row], numbers: Sequence[int]) -> list[Row]:
    """Some rows, at once where ``rows`` can make several side by side; torch's loaders ask so too."""
    if hasattr(rows, "__getitems__"):
        return rows.__getitems__(numbers)
    return [rows[number] for number in numbers]


class Together:
    """Several tasks' inputs as one, one task's rows after the other's."""

    def __init__(self, inputs: Sequence[Inputs]):
        self.rows: Sequence[Row] = _Joined([each.rows for each in inputs])
        self.lengths = [length for each in inputs for length in each.lengths]


class _Joined(Sequence[Row]):
    def __init__(self, parts: Sequence[Sequence[Row]]):
        self.parts, self.ends = parts, list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, row):
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Row]:
        found: dict[int, Row] = {}
        for part, end in zip(self.parts, self.ends, strict=True):
            start = end - len(part)
            mine = [row for row in rows if start <= row < end]
            if mine:
                found |= zip(mine, taken(part, [row - start for row in mine]), strict=True)
        return [found[row] for row in rows]
