"""A file's hash is computed once a process, and anew whenever the file changes."""

from __future__ import annotations

import os
import time
from hashlib import sha256
from pathlib import Path

import pytest

from twin_merging import checksums


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read."""
    found, read = [], checksums._read
    monkeypatch.setattr(checksums, "_read", lambda path: (found.append(path), read(path))[1])
    return found


def rewritten(path: Path, data: bytes, seconds: int) -> None:
    path.write_bytes(data)
    os.utime(path, (seconds, seconds))


def test_a_file_that_stays_is_read_once_and_one_that_changes_again(tmp_path: Path, reads, monkeypatch):
    monkeypatch.setattr(checksums, "SETTLED", 0)
    path = tmp_path / "weights"
    for number, data in enumerate([b"old", b"new"]):
        rewritten(path, data, 1000 + number)
        assert [checksums.sha256_of(path) for _ in range(3)] == [sha256(data).hexdigest()] * 3
        assert len(reads) == number + 1


def test_times_that_were_put_back_hide_no_change(tmp_path: Path, reads, monkeypatch):
    monkeypatch.setattr(checksums, "SETTLED", 0)
    path = tmp_path / "weights"
    rewritten(path, b"old", 1000)
    checksums.sha256_of(path)
    time.sleep(0.05)  # longer than a tick of the clock
    rewritten(path, b"new", 1000)
    assert checksums.sha256_of(path) == sha256(b"new").hexdigest()


def test_what_has_just_been_written_may_change_within_one_tick_of_the_clock(tmp_path: Path, reads):
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    for _ in range(2):
        checksums.sha256_of(path)
    assert len(reads) == 2
