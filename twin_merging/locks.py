"""One process at a time, by a lock on a file; one that has to wait says so."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("twin_merging")


@contextmanager
def alone(path: Path, waiting: str) -> Iterator[None]:
    """Hold the lock ``path``, whose folder is made if it is missing; ``waiting`` is logged while another process has it.

    The operating system lets go of the lock of a process that is killed.
    """
    from filelock import FileLock, Timeout  # a tenth of a second, which commands that lock nothing do not take

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        log.info("%s", waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
