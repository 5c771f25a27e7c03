"""Seconds and peak memory of a block, and the machine that they are of."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
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


def machine(device: str) -> str:
    """What seconds on a device depend on, for people: ``cpu: AMD EPYC 7763, 2 threads``.

    Args:
        device: torch's name of it; a GPU is called by its own, whatever its number.
    """
    import torch

    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else _processor()
    threads = torch.get_num_threads()
    return f"{kind}: {name}, {threads} thread{'s' if threads > 1 else ''}"


@lru_cache(maxsize=1)
def _processor() -> str:
    """The processor's name; Linux has it in a file, where the standard library gives its architecture alone."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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
