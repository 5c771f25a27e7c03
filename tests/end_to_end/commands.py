"""Run ``run.py`` as a user does: another process, its exit code, what it printed, and the files it left.

``start`` starts ``python run.py``. ``run`` runs the same command line in a process that is forked from one which has
imported torch and transformers already, since starting dozens of them anew would take minutes.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SECONDS = 900  # after which a command counts as hanging
SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}  # one thread adds up in one order
HEAVY = ["torch", "scipy.stats", "sklearn.metrics", "transformers.trainer", "transformers.models.auto.modeling_auto",
         "transformers.models.bert.modeling_bert", "pyarrow.parquet", "matplotlib.figure"]  # fmt: skip
os.environ.update(SETTINGS)
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(HEAVY)


@dataclass(frozen=True)
class Outcome:
    """How a command ended. ``out`` and ``err`` are what it printed."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """All that it printed."""
        return self.out + self.err

    def lines(self, *words: str) -> list[str]:
        """The printed lines that hold all of ``words``."""
        return [line for line in self.text.splitlines() if all(word in line for word in words)]


def start(*arguments: object, folder: Path, env: dict[str, str] | None = None, group: bool = False) -> subprocess.Popen:
    """Start ``python run.py`` with ``folder`` as the current one; with ``group`` as the leader of a process group."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *map(str, arguments)], cwd=folder, text=True,
        env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        preexec_fn=_listen_to_interrupts, start_new_session=group,
    )  # fmt: skip


def _listen_to_interrupts() -> None:
    """A shell has its background jobs ignore them, and so would all that such a job starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(process: subprocess.Popen) -> Outcome:
    """Wait for a started command."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Outcome(process.returncode, out, err)


def run(*arguments: object, folder: Path, env: dict[str, str] | None = None) -> Outcome:
    """Run a command line to its end, with ``folder`` as the current one."""
    with tempfile.TemporaryDirectory() as place:
        process = forks.Process(
            target=_command, args=([str(argument) for argument in arguments], folder, Path(place), env or {})
        )
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
        out, err = ((Path(place) / name).read_text() for name in ("out", "err"))
    assert process.exitcode is not None, f"hangs: {arguments}\n{out}{err}"
    return Outcome(process.exitcode, out, err)


def _command(arguments: list[str], folder: Path, place: Path, env: dict[str, str]) -> None:
    """What ``run.py`` does, in the forked process."""
    os.environ.update(env)
    os.chdir(folder)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.argv = [str(ROOT / "run.py"), *arguments]
    from twin_merging.cli import main

    try:
        code = main()
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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


def clear_merged(cache: Path) -> None:
    """Delete merged models and what was extracted from them, of large models or of many, so that a disk has room for the rest."""
    for stage in ("merge", "exclusive", "basis", "gram", "fisher"):
        shutil.rmtree(cache / stage, ignore_errors=True)


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """The part of results.json that must be the same whenever the job runs."""
    return {
        key: result[key]
        for key in ("tasks", "average_normalized", "average_raw", "bytes_stored", "routing", "choices", "label")
    }


def lasting(result: dict[str, Any]) -> dict[str, Any]:
    """All of results.json but what is of one time: seconds, memory, and what was in the cache already."""
    once = ("seconds", "peak_memory", "cached", "inference")
    stages = [{key: value for key, value in stage.items() if key not in once} for stage in result["stages"]]
    costs = {key: value for key, value in result["costs"].items() if key != "making"}
    return {key: value for key, value in result.items() if key not in once} | {"stages": stages, "costs": costs}


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
