"""A config key: its default, its meaning, its range."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Any

from twin_merging.errors import UserError

TINY = 1e-12  # the lowest value of what must be positive
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def option(
    default: Any, help: str, *, low: float | None = None, high: float | None = None, choices: tuple | None = None
) -> Any:
    """A config key: its default, what it means, and the closed range or the choices that its value must be in."""
    metadata = {"help": help, "low": low, "high": high, "choices": choices}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def bytes_of(text: str, key: str) -> int:
    """``"5GB"`` as a number of bytes; ``key`` is the one that it is the value of.

    Raises:
        UserError: if it is no size.
    """
    match = re.fullmatch(r"([0-9.]+)\s*([KMG]B)?", text.strip().upper())
    try:
        size = int(float(match[1]) * UNITS[match[2] or ""]) if match else 0
    except ValueError:
        size = 0
    if size <= 0:
        raise UserError("not a size", key=key, found=text, expected="such as 500MB or 5GB")
    return size
