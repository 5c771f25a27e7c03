"""Rows as a model reads them, before they are put side by side: in memory, or made when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
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
