"""Seconds and peak memory of a block."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Measured:
    """Wall-clock seconds and the process's highest resident memory (bytes) while the block ran."""

    seconds: float = 0.0
    peak_memory: int = 0


@contextmanager
def measured() -> Iterator[Measured]:
    """Measure the block; with CUDA in use, the peak is that of device memory."""
    result = Measured()
    _reset_peak()
    start = time.perf_counter()
    try:
        yield result
    finally:
        result.seconds = time.perf_counter() - start
        result.peak_memory = _peak()


def _cuda():
    torch = sys.modules.get("torch")  # a block that never loads torch should not load it to be measured
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def _reset_peak() -> None:
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: makes VmHWM start again from here


def _peak() -> int:
    if cuda := _cuda():
        return int(cuda.max_memory_allocated())
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of the whole process so far
        return usage if sys.platform == "darwin" else usage * 1024
