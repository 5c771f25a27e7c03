"""The lock on a file that a process has alone."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from twin_merging.locks import alone


def test_one_at_a_time_and_who_waits_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "twin_merging")
    lock, order = tmp_path / "missing" / "a.lock", []

    def second() -> None:
        with alone(lock, "waiting for 100% of it"):
            order.append("second")

    thread = threading.Thread(target=second)
    with alone(lock, "nobody has it"):
        thread.start()
        while "waiting for 100% of it" not in caplog.messages:
            assert thread.is_alive()
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]
    assert "nobody has it" not in caplog.messages


def test_it_is_free_again_after_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "twin_merging")
    with pytest.raises(ValueError, match="broken"), alone(tmp_path / "a.lock", "first"):
        raise ValueError("broken")
    with alone(tmp_path / "a.lock", "second"):
        pass
    assert caplog.messages == []
