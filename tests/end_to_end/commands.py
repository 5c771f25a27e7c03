"""Run ``run.py`` as a user does: another process, its exit code, what it printed, and the files it left."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SECONDS = 240  # after which a command counts as hanging


@dataclass(frozen=True)
class Outcome:
    """How a command ended. ``out`` and ``err`` are what it printed."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def text(self) -> str:
        """All that it printed."""
        return self.out + self.err

    def lines(self, *words: str) -> list[str]:
        """The printed lines that hold all of ``words``."""
        return [line for line in self.text.splitlines() if all(word in line for word in words)]


def start(
    *arguments: object, folder: Path, env: dict[str, str] | None = None, program: list[str] | None = None
) -> subprocess.Popen:
    """Start ``run.py`` with ``folder`` as the current one. One thread, so that sums are added in one order."""
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": ""}
    return subprocess.Popen(
        [*(program or [sys.executable, str(ROOT / "run.py")]), *map(str, arguments)], cwd=folder, text=True,
        env={**os.environ, **settings, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def finish(process: subprocess.Popen, began: float | None = None) -> Outcome:
    """Wait for a started command."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Outcome(process.returncode, out, err, time.monotonic() - (began or time.monotonic()))


def run(
    *arguments: object, folder: Path, env: dict[str, str] | None = None, program: list[str] | None = None
) -> Outcome:
    """Run ``run.py`` to its end."""
    began = time.monotonic()
    return finish(start(*arguments, folder=folder, env=env, program=program), began)


def succeed(*arguments: object, folder: Path, env: dict[str, str] | None = None) -> Outcome:
    """Run ``run.py`` and check that it ended well."""
    outcome = run(*arguments, folder=folder, env=env)
    assert outcome.code == 0, outcome.text
    return outcome


def refused(
    *arguments: object, folder: Path, says: list[str], code: int = 2, env: dict[str, str] | None = None
) -> Outcome:
    """Run ``run.py`` and check that it refuses: exit code 2, all of ``says`` in what it prints, and no traceback."""
    outcome = run(*arguments, folder=folder, env=env)
    assert outcome.code == code, outcome.text
    assert "Traceback" not in outcome.text, outcome.text
    missing = [words for words in says if words not in outcome.text]
    assert not missing, f"{missing} not in:\n{outcome.text}"
    return outcome


def results(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Every results.json below ``folder`` by (merge method, heads)."""
    read = [json.loads(path.read_text()) for path in sorted(folder.rglob("results.json"))]
    return {(result["merge_method"], result["heads"]): result for result in read}


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """The part of results.json that must be the same whenever the job runs."""
    return {
        key: result[key]
        for key in ("tasks", "average_normalized", "average_raw", "bytes_stored", "routing", "choices", "label")
    }


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every file below ``folder`` but for locks, which hold nothing."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def wait_until(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = SECONDS) -> bool:
    """Poll ``condition``; False if the process ended before it held."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        if process.poll() is not None:
            return condition()
        time.sleep(0.001)
    return True
