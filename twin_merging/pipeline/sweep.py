"""A sweep in its folder: which jobs it has, which of them are done, and who is at work on them.

``sweep.json`` in the folder names the jobs. What a job is, its identity says: a hash of its configuration, but for what
only says where things go, and of its result's key, which holds the data, the code's versions and the settings. So the
same sweep is one of the same jobs, and results of other code or data are never taken for its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from twin_merging.config import RunConfig
from twin_merging.errors import UserError
from twin_merging.locks import alone
from twin_merging.reporting.results import ATTEMPTS, FAILURE, RESULTS, read, write_failure, write_json
from twin_merging.validation import to_plain

log = logging.getLogger("twin_merging")
MANIFEST, LOCKS = "sweep.json", ".locks"
VOLATILE = ("paths", "tracker", "cache", "sweep")  # where things go, and not what they are
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Job:
    """One job of a sweep: its folder's name, the overrides that make it, and what identifies its results."""

    name: str
    overrides: tuple[str, ...]
    identity: str


@dataclass(frozen=True)
class OpenSweep:
    """A sweep that this process alone works on: its folder, and those of its jobs that are still to be done."""

    folder: Path
    pending: tuple[Job, ...]

    def note_missing(self) -> None:
        """Write a failure for every job that ended without a word, as one does whose process was killed."""
        for job in self.pending:
            place = self.folder / job.name
            if any((place / name).exists() for name in (RESULTS, FAILURE)):
                continue
            runs = not _is_free(place)
            message = "it still runs in another process" if runs else "ended without a result: its process was killed"
            place.mkdir(parents=True, exist_ok=True)
            write_failure(place, label=job.name, kind="crash", message=message, log=str(place / "run.log"))


def job_identity(run: RunConfig, result_key: str) -> str:
    """20 hex digits of what determines a job's results.

    Args:
        result_key: the key of the job's last stage.
    """
    config = {key: value for key, value in to_plain(run).items() if key not in VOLATILE}
    return _digest([config, result_key])


@contextmanager
def opened(folder: Path, jobs: Sequence[Job], *, resume: bool, search: bool) -> Iterator[OpenSweep]:
    """Open a sweep's folder, or with ``resume`` that of the same sweep, for this process alone; others wait.

    Args:
        folder: a new folder, or the one that was asked for.
        resume: go on with a sweep that was begun; what is left there of jobs that are not done is kept in ``attempts/``.
        search: look for the same sweep beside ``folder``, as no folder was asked for.

    Raises:
        UserError: if the folder holds another sweep, or one that is not to be resumed.
    """
    if resume and search:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder.parent / f".{_sweep_identity(jobs)}.lock", "this sweep is being opened elsewhere"):
            folder = _same_sweep(folder.parent, jobs) or folder
            _begin(folder, jobs)  # so that a process that starts at the same time finds it
    with alone(folder / LOCKS / "sweep.lock", f"another process works on the sweep in {folder}: waiting for it"):
        if (folder / MANIFEST).exists():
            _check_same(folder, jobs, resume)
        elif resume:
            _refuse_foreign(folder)
        _begin(folder, jobs)
        pending = tuple(job for job in jobs if not _is_done(folder / job.name, job.identity))
        if resume:
            log.info("%d of %d jobs are done already in %s", len(jobs) - len(pending), len(jobs), folder)
            for job in pending:
                _set_aside(folder, job.name)
        yield OpenSweep(folder, pending)


def unfinished(folder: Path, jobs: Sequence[Job]) -> Path | None:
    """The folder beside ``folder`` in which the same sweep was begun and not finished."""
    found = _same_sweep(folder.parent, jobs)
    if found is None or all(_is_done(found / job.name, job.identity) for job in jobs):
        return None
    return found


def is_of_sweep(folder: Path) -> bool:
    """Whether a job's folder is in that of a sweep whose jobs were known before it started."""
    return any((above / MANIFEST).exists() for above in folder.parents[:3])


@contextmanager
def turn(folder: Path) -> Iterator[bool]:
    """A job's turn in its folder: one process at a time, and nothing to do (False) if another has done it meanwhile.

    A sweep's process may be killed while its jobs go on in others; those of the sweep that resumes wait for them.
    A job of no sweep has its folder to itself.
    """
    if not is_of_sweep(folder):
        yield True
        return
    with alone(_lock_of(folder), f"{folder.name} runs in another process: waiting for it"):
        yield not (folder / RESULTS).exists()


def _sweep_identity(jobs: Sequence[Job]) -> str:
    return _digest(sorted(job.identity for job in jobs))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def _begin(folder: Path, jobs: Sequence[Job]) -> None:
    """Write the manifest, if there is none."""
    if (folder / MANIFEST).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    listed = [{"folder": job.name, "identity": job.identity, "overrides": list(job.overrides)} for job in jobs]
    write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, "identity": _sweep_identity(jobs), "jobs": listed})


def _same_sweep(parent: Path, jobs: Sequence[Job]) -> Path | None:
    """The latest folder in ``parent`` that holds the same jobs under the same names."""
    for manifest in sorted(parent.glob(f"*/{MANIFEST}"), reverse=True):
        if _listed(manifest) == [(job.name, job.identity) for job in jobs]:
            return manifest.parent
    return None


def _listed(manifest: Path) -> list[tuple[str, str]] | None:
    """The jobs of a manifest by name and identity; None where it is no manifest of ours."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if content["schema_version"] != SCHEMA_VERSION:
            return None
        return [(job["folder"], job["identity"]) for job in content["jobs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_same(folder: Path, jobs: Sequence[Job], resume: bool) -> None:
    listed = _listed(folder / MANIFEST)
    same = listed == [(job.name, job.identity) for job in jobs]
    if not resume:
        raise UserError(
            "this folder has a sweep already and results are never overwritten", key="hydra.sweep.dir", found=folder,
            hint="sweep.resume=true goes on with the same sweep; another needs another folder",
        )  # fmt: skip
    if not same:
        names = [name for name, _ in listed] if listed else []
        alike = names == [job.name for job in jobs]
        raise UserError(
            "this folder holds the same jobs, but of other settings, data or code" if alike
            else "this folder holds a sweep of other jobs",
            key="hydra.sweep.dir", found=folder, expected="a folder of the same sweep, or a new one",
        )  # fmt: skip


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and any(folder.rglob(RESULTS)):
        raise UserError(
            f"this folder has results, but no {MANIFEST} that says of which sweep", key="hydra.sweep.dir", found=folder,
            expected="a folder of the same sweep, or a new one",
        )  # fmt: skip


def _is_done(place: Path, identity: str) -> bool:
    if not (place / RESULTS).exists():
        return False
    try:
        results = read(place)
    except UserError as error:
        log.warning("  %s: %s", error.key, error.message)
        return False
    return results["provenance"].get("job") == identity


def _set_aside(folder: Path, name: str) -> None:
    """Move what an attempt has left of a job to ``attempts/``, unless it still runs."""
    place = folder / name
    if not place.exists() or not _is_free(place):
        return
    kept = folder / ATTEMPTS
    kept.mkdir(exist_ok=True)
    number = 1
    while (kept / f"{name}.{number}").exists():
        number += 1
    place.rename(kept / f"{name}.{number}")


def _lock_of(place: Path) -> Path:
    return place.parent / LOCKS / f"{place.name}.lock"


def _is_free(place: Path) -> bool:
    """Whether no process is at work on a job."""
    lock = _lock_of(place)
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock).acquire(timeout=0):
            return True
    except Timeout:
        return False
