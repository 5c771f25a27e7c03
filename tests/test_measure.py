from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch

from twin_merging.measure import machine, measured

MB = 1_000_000


def allocate(size: int) -> None:
    """Touch ``size`` bytes, which are given back on return."""
    bytearray(size)[::4096] = b"x" * len(range(0, size, 4096))


def needs_resettable_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system cannot reset a process's peak memory")
    if torch.cuda.is_available():
        pytest.skip("with CUDA the peak is that of device memory")


def test_memory_that_a_block_takes_and_gives_back_is_seen():
    needs_resettable_peak()
    with measured() as idle:
        pass
    with measured() as busy:
        allocate(200 * MB)
    assert 190 * MB < busy.peak_memory - idle.peak_memory < 260 * MB


def test_the_peak_is_that_of_the_block_not_of_what_came_before():
    needs_resettable_peak()
    with measured() as busy:
        allocate(200 * MB)
    with measured() as idle:
        pass
    assert busy.peak_memory - idle.peak_memory > 150 * MB


def test_seconds_are_those_of_the_block():
    with measured() as cost:
        time.sleep(0.05)
    assert 0.05 <= cost.seconds < 1


def test_a_block_that_fails_is_measured_too():
    with pytest.raises(ValueError, match="x"), measured() as cost:  # noqa: PT012
        time.sleep(0.01)
        raise ValueError("x")
    assert cost.seconds >= 0.01
    assert cost.peak_memory > MB


def test_the_machine_is_called_by_its_processor_and_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert re.fullmatch("cpu: .*[A-Za-z].*, 64 threads", machine("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card of {device}")
    assert machine("cuda:1") == "cuda: card of cuda:1, 64 threads"
