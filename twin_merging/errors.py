"""The one error a user is meant to read: which key, what was found, what was expected, the nearest valid choice."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """Bad input that the user can mend. Entry points print it without a traceback and exit with code 2.

    Args:
        message: what is wrong, in one sentence.
        key: the config key, file or option that is wrong.
        found: the value that was given.
        expected: what would have been accepted.
        nearest: the valid choice closest to what was given, if any is close.
        hint: what to do next, such as the command that mends it.
    """

    def __init__(
        self,
        message: str,
        *,
        key: str | None = None,
        found: object = None,
        expected: object = None,
        nearest: str | None = None,
        hint: str | None = None,
    ):
        self.message, self.key, self.found = message, key, found
        self.expected, self.nearest, self.hint = expected, nearest, hint
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.key}: {self.message}" if self.key else self.message
        rows = {
            "found": self.found,
            "expected": self.expected,
            "nearest": self.nearest,
            "hint": self.hint,
        }
        return "\n".join([head, *(f"  {name + ':':<10}{value}" for name, value in rows.items() if value is not None)])

    def __reduce__(self):
        return _rebuild, (self.message, self.key, self.found, self.expected, self.nearest, self.hint)


def _rebuild(message, key, found, expected, nearest, hint) -> UserError:
    """Rebuild an error that was raised in another process."""
    return UserError(message, key=key, found=found, expected=expected, nearest=nearest, hint=hint)


def nearest(given: object, known: Iterable[str]) -> str | None:
    """The known name closest in spelling to ``given``, or None when none is close."""
    matches = difflib.get_close_matches(str(given), [str(name) for name in known], n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown(key: str, given: object, known: Iterable[str], what: str = "name") -> UserError:
    """The error for a name that is not among the known ones."""
    known = sorted(str(name) for name in known)
    return UserError(
        f"unknown {what}", key=key, found=given, expected="one of " + ", ".join(known), nearest=nearest(given, known)
    )


def full_error() -> bool:
    """Whether tracebacks are asked for: ``TWIN_FULL_ERROR=1`` in the environment."""
    return bool(os.environ.get("TWIN_FULL_ERROR"))


def exit_code(command: Callable[[], int], interrupted: str) -> int:
    """Run what a command line asks for and return its exit code, 2 for an error that the user can mend, 130 for Ctrl-C.

    Args:
        interrupted: what Ctrl-C has lost and what not.
    """
    try:
        return command()
    except UserError as error:
        if full_error():
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted: {interrupted}", file=sys.stderr)
        return 130
