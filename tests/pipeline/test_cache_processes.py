"""The cache among real processes that are killed, that race, or whose disk is really full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from twin_merging.errors import UserError
from twin_merging.pipeline.cache import Cache, clean
from twin_merging.pipeline.stage import Stage

PROGRAM = """
import logging, sys, time
from pathlib import Path
from twin_merging.pipeline.cache import Cache
from twin_merging.pipeline.stage import Stage

root, runs, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)

def work(folder, scratch):
    with runs.open("a") as file:
        file.write("run\\n")
    (folder / "first.txt").write_text("first")
    (scratch / "progress.txt").write_text("progress")
    time.sleep(pause)
    (folder / "second.txt").write_text("second")

stage = Stage("data", "label", 1, (), lambda: work)
artefact = Cache(root).get(stage)
print("cached" if artefact.cached else "computed", sorted(artefact.files))
"""
COMPLETE = "['first.txt', 'second.txt']"


def start(folder: Path, pause: float) -> subprocess.Popen:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(program), str(folder / "cache"), str(folder / "runs.txt"), str(pause)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def output(process: subprocess.Popen) -> str:
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    return text


def wait_for(condition, seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)


def runs(folder: Path) -> int:
    file = folder / "runs.txt"
    return len(file.read_text().splitlines()) if file.exists() else 0


def artefacts(folder: Path) -> list[Path]:
    return [path for path in (folder / "cache" / "data").glob("*") if not path.name.startswith(".")]


def test_a_killed_process_leaves_nothing_half_written_and_the_next_run_finishes(tmp_path):
    killed = start(tmp_path, pause=60)
    wait_for(lambda: list((tmp_path / "cache").glob("unfinished/*/progress.txt")))
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(timeout=30) == -signal.SIGKILL
    assert artefacts(tmp_path) == []
    assert Cache(tmp_path / "cache").find(Stage("data", "label", 1, (), lambda: None)) is None

    text = output(start(tmp_path, pause=0))
    assert f"computed {COMPLETE}" in text
    assert runs(tmp_path) == 2
    assert len(artefacts(tmp_path)) == 1
    # what the killed process was writing is gone too
    assert list((tmp_path / "cache" / "data").iterdir()) == artefacts(tmp_path)
    assert list((tmp_path / "cache" / "unfinished").iterdir()) == []


def test_what_a_killed_process_left_can_be_cleaned(tmp_path):
    killed = start(tmp_path, pause=60)
    unfinished = (tmp_path / "cache").glob
    wait_for(lambda: [file.read_text() for file in unfinished("unfinished/*/progress.txt")] == ["progress"])
    assert clean(tmp_path / "cache") == 0  # it is being computed
    killed.send_signal(signal.SIGKILL)
    killed.wait(timeout=30)
    assert clean(tmp_path / "cache") == len("first") + len("progress")
    assert list((tmp_path / "cache" / "data").iterdir()) == []


def test_two_processes_compute_once_and_the_second_waits(tmp_path):
    first = start(tmp_path, pause=3)
    wait_for(lambda: runs(tmp_path) == 1)
    second = start(tmp_path, pause=3)
    texts = output(first), output(second)
    assert runs(tmp_path) == 1
    assert f"computed {COMPLETE}" in texts[0]
    assert f"cached {COMPLETE}" in texts[1]
    assert "waiting: another process computes it" in texts[1]


def test_a_process_takes_over_from_one_that_is_killed(tmp_path):
    first = start(tmp_path, pause=60)
    wait_for(lambda: runs(tmp_path) == 1)
    second = start(tmp_path, pause=0)
    wait_for(lambda: len(list((tmp_path / "cache").glob("locks/*"))) == 1)
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=30)
    assert f"computed {COMPLETE}" in output(second)
    assert runs(tmp_path) == 2


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk_is_explained_and_leaves_room_again(small_disk):
    def fill(folder: Path, scratch: Path) -> None:
        (folder / "large.bin").write_bytes(b"x" * 3_000_000)

    def fit(folder: Path, scratch: Path) -> None:
        (folder / "small.bin").write_bytes(b"x" * 300_000)

    root = small_disk / "cache"
    with pytest.raises(UserError, match="the disk is full") as caught:
        Cache(root).get(Stage("data", "label", "large", (), lambda: fill))
    assert caught.value.key == "paths.cache"
    assert not [path for path in root.rglob("*.bin")]
    assert Cache(root).get(Stage("data", "label", "small", (), lambda: fit)).bytes("small.bin") == 300_000
