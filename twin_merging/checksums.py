"""Files against their SHA-256."""

from __future__ import annotations

import hashlib
import time
from functools import cache
from pathlib import Path

from twin_merging.errors import UserError

SETTLED = 2_000_000_000  # nanoseconds after which a change of a file is sure to show in its times


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, which is read once a process: jobs of a sweep ask again for the same gigabytes."""
    about = path.stat()
    changed = max(about.st_mtime_ns, about.st_ctime_ns)
    if time.time_ns() - changed < SETTLED:
        return _read(path)
    return _remembered(path, about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


@cache
def _remembered(path: Path, *identity: int) -> str:
    return _read(path)


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path, sha256: str, size: int, hint: str) -> None:
    """Compare a file with its hash and its size in bytes.

    Raises:
        UserError: what was expected and found, with ``hint``: the command that mends it.
    """
    if not path.is_file():
        raise damaged(path, f"a file of {size} bytes", "no file", hint)
    if path.stat().st_size != size:
        raise damaged(path, f"{size} bytes", f"{path.stat().st_size} bytes", hint)
    found = sha256_of(path)
    if found != sha256:
        raise damaged(path, f"SHA-256 {sha256}", f"SHA-256 {found}", hint)


def damaged(path: Path, expected: str, found: str, hint: str) -> UserError:
    """The error for a file that is not what it was."""
    return UserError("the file is damaged or incomplete", key=str(path), found=found, expected=expected, hint=hint)
