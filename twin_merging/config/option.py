"""A config key: its default, its meaning, its range."""

from __future__ import annotations

from dataclasses import field
from typing import Any

TINY = 1e-12  # the lowest value of what must be positive


def option(
    default: Any, help: str, *, low: float | None = None, high: float | None = None, choices: tuple | None = None
) -> Any:
    """A config key: its default, what it means, and the closed range or the choices that its value must be in."""
    metadata = {"help": help, "low": low, "high": high, "choices": choices}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
