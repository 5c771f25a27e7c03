"""The memory that a piece of work adds to this process, as the kernel counts it, or on a GPU as torch does."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import torch

MMAP_THRESHOLD = -3  # glibc's number of it
STATUS, REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def give_back_at_once() -> None:
    """Let tensors from a megabyte on have pages of their own, so that what is freed is not counted, whatever lies beside it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 20)


def settled(device: str = "cpu") -> int | None:
    """Kilobytes in use once freed memory is given back and the peak is forgotten; None where that is not possible."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() >> 10
    try:
        ctypes.CDLL(None).malloc_trim(0)
        REFS.write_text("5")
    except (OSError, AttributeError):
        return None
    return of("VmRSS")


def added_since(before: int | None, device: str = "cpu") -> int | None:
    """The kilobytes of the highest peak above ``before``, at least 1."""
    if before is not None and device == "cuda":
        return max((torch.cuda.max_memory_allocated() >> 10) - before, 1)
    return None if before is None else max(of("VmHWM") - before, 1)


def of(line: str) -> int:
    """Kilobytes that the kernel says under ``line``."""
    return next(int(row.split()[1]) for row in STATUS.read_text().splitlines() if row.startswith(line))
