"""Artefacts addressed by what determines them: computed once, complete or absent, shared by every process.

A stage's key is the SHA-256 of its name, version, options and its inputs' keys. Its artefact is a folder that is written
under a temporary name and renamed into place while a file lock is held, so that a killed process leaves nothing
half-written and two processes compute it once.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from twin_merging.checksums import check_file, sha256_of
from twin_merging.errors import UserError
from twin_merging.locks import alone
from twin_merging.measure import measured
from twin_merging.pipeline.stage import Stage
from twin_merging.progress import format_seconds

log = logging.getLogger("twin_merging")
MANIFEST = "manifest.json"
OURS = re.compile(
    r"[0-9a-f]{20}|\.[0-9a-f]{20}-.+|.+-[0-9a-f]{20}"
)  # an artefact, one that is being written, its scratch


@dataclass(frozen=True)
class Artefact:
    """A stage's finished folder, with what computing it took (also when it was computed by an earlier run)."""

    stage: str
    label: str
    key: str
    folder: Path
    seconds: float
    peak_memory: int
    cached: bool
    files: dict[str, dict[str, Any]]

    def path(self, name: str) -> Path:
        """The path of one of its files, checked against the recorded SHA-256 once a process.

        Raises:
            UserError: if the file is not as it was written.
        """
        path, record = self.folder / name, self.files[name]
        if (path, record["sha256"]) not in _checked:
            check_file(path, record["sha256"], record["bytes"], f"remove {self.folder} and run again")
            _checked.add((path, record["sha256"]))
        return path

    def json(self, name: str) -> Any:
        """One of its JSON files, read."""
        return json.loads(self.path(name).read_text())

    def bytes(self, name: str) -> int:
        """The size of one of its files."""
        return self.files[name]["bytes"]


_checked: set[tuple[Path, str]] = set()  # files whose hash this process has seen to be right


class Cache:
    """Stages' artefacts under ``root``.

    Args:
        root: the cache folder.
        mode: ``write`` reads and adds; ``read`` adds nothing; ``off`` does neither. What may not be added is computed in
            a temporary folder that lives as long as this object.
    """

    def __init__(self, root: Path, mode: str = "write"):
        self.root, self.mode = root.absolute(), mode
        self._known: dict[str, Artefact] = {}
        self._temporary: tempfile.TemporaryDirectory | None = None

    @property
    def computed(self) -> set[str]:
        """Keys of the artefacts that this object computed."""
        return {key for key, artefact in self._known.items() if not artefact.cached}

    def find(self, stage: Stage) -> Artefact | None:
        """The artefact if it is there, complete; nothing is computed."""
        if stage.key in self._known:
            return self._known[stage.key]
        return None if self.mode == "off" else self._read(stage, self._folder(stage), cached=True)

    def get(self, stage: Stage) -> Artefact:
        """The artefact, computed if need be. One line tells the user which.

        Raises:
            UserError: if the disk is full.
        """
        if stage.key in self._known:
            return self._known[stage.key]
        artefact = self.find(stage)
        if artefact is None:
            for inner in stage.inputs:
                self.get(inner)
            artefact = self._compute_locked(stage) if self.mode == "write" else self._compute_aside(stage)
        self._known[stage.key] = artefact
        word = "cached" if artefact.cached else f"computed in {format_seconds(artefact.seconds)}"
        log.info("  %-10s %-44s %s", stage.name, stage.label, word)
        return artefact

    def _folder(self, stage: Stage) -> Path:
        return self.root / stage.name / stage.key

    def _compute_locked(self, stage: Stage) -> Artefact:
        folder = self._folder(stage)
        with full_disk_explained(self.root, "paths.cache"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            waiting = f"  {stage.name:<10} {stage.label:<44} waiting: another process computes it"
            with alone(self.root / "locks" / f"{stage.name}-{stage.key}.lock", waiting):
                if found := self._read(stage, folder, cached=True):
                    return found
                for killed in folder.parent.glob(
                    f".{stage.key}-*"
                ):  # its process let go of the lock without cleaning up
                    shutil.rmtree(killed, ignore_errors=True)
                scratch = self.root / "unfinished" / f"{stage.name}-{stage.key}"
                self._compute(stage, folder, scratch)
                shutil.rmtree(scratch, ignore_errors=True)
        return self._present(stage, folder)

    def _compute_aside(self, stage: Stage) -> Artefact:
        self._temporary = self._temporary or tempfile.TemporaryDirectory(prefix="twin_merging-")
        folder = Path(self._temporary.name) / stage.name / stage.key
        folder.parent.mkdir(exist_ok=True)
        with full_disk_explained(folder.parent, "TMPDIR"):
            self._compute(stage, folder, folder.parent / f"{stage.key}-scratch")
        return self._present(stage, folder)

    def _compute(self, stage: Stage, folder: Path, scratch: Path) -> None:
        unfinished = Path(tempfile.mkdtemp(prefix=f".{stage.key}-", dir=folder.parent))
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            compute = stage.load()
            with measured() as cost:
                compute(unfinished, scratch)
            _write_manifest(stage, unfinished, cost)
            if folder.exists():
                shutil.rmtree(folder)
            unfinished.chmod(0o755)
            os.replace(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _present(self, stage: Stage, folder: Path) -> Artefact:
        artefact = self._read(stage, folder, cached=False)
        assert artefact is not None, f"{folder} vanished"
        return artefact

    def _read(self, stage: Stage, folder: Path, cached: bool) -> Artefact | None:
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            files = manifest["files"]
            damaged = [name for name, record in files.items() if (folder / name).stat().st_size != record["bytes"]]
            seconds, peak_memory = manifest["seconds"], manifest["peak_memory"]
        except FileNotFoundError as error:
            if folder.exists():
                log.warning("  %s is incomplete (%s is missing): computed again", folder, error.filename)
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            damaged = [MANIFEST]
        if damaged:
            log.warning("  %s is damaged (%s): computed again", folder, ", ".join(damaged))
            return None
        return Artefact(stage.name, stage.label, stage.key, folder, seconds, peak_memory, cached, files)


def _write_manifest(stage: Stage, folder: Path, cost: Any) -> None:
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = {
        "stage": stage.name, "label": stage.label, "version": stage.version, "options": stage.options,
        "inputs": [f"{inner.name}/{inner.key}" for inner in stage.inputs],
        "seconds": cost.seconds, "peak_memory": cost.peak_memory, "files": files,
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


@contextmanager
def full_disk_explained(folder: Path, key: str) -> Iterator[None]:
    """Turn "no space left" while writing below ``folder`` into a UserError about the config key that names it."""
    try:
        yield
    except Exception as error:
        if not _is_full_disk(error) or isinstance(error, UserError):
            raise
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        raise UserError(
            "the disk is full: what was finished is kept, the unfinished part was removed",
            key=key, found=f"{free / 1e6:.0f} MB free at {folder}",
            hint=f"free some space or set {key} to another disk, then run the same command again",
        ) from error  # fmt: skip


def _is_full_disk(error: BaseException) -> bool:
    """Libraries wrap the operating system's error, so its text counts where its number is lost."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error)
    return "No space left on device" in text or "os error 28" in text or "StorageFull" in text


def listing(root: Path) -> list[tuple[str, int, int]]:
    """(stage, artefacts, bytes) of everything under a cache folder."""
    rows = []
    for stage in sorted(path for path in root.glob("*") if path.is_dir() and path.name != "locks"):
        artefacts = [path for path in stage.iterdir() if path.is_dir() and not path.name.startswith(".")]
        rows.append((stage.name, len(artefacts), _size(stage)))
    return rows


def clean(root: Path) -> int:
    """Remove every artefact and what killed processes left, and return the bytes freed.

    Artefacts that another process is computing right now are left alone, and so is all that no cache made.
    """
    freed = 0
    (root / "locks").mkdir(parents=True, exist_ok=True)
    for folder in [path for path in root.glob("*/*") if path.is_dir() and OURS.fullmatch(path.name)]:
        stage, _, key = (
            folder.name.rpartition("-") if folder.parent.name == "unfinished" else (folder.parent.name, "", folder.name)
        )
        try:
            with FileLock(root / "locks" / f"{stage}-{key.lstrip('.').partition('-')[0]}.lock").acquire(timeout=0):
                freed += _size(folder)
                shutil.rmtree(folder)
        except Timeout:
            log.info("  %s is in use: left alone", folder)
    return freed


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
