"""Read zip and tar archives member by member, trusting no member's name."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO

from twin_merging.errors import UserError


def read(archive: IO[bytes], *patterns: str) -> dict[str, bytes]:
    """Contents of the regular members whose name matches one of the shell ``patterns``, in the archive's order.

    Raises:
        UserError: if none matches, or a matching member is a link, or its name leaves the archive.
    """
    wanted = _members(archive, lambda name: any(fnmatchcase(name, pattern) for pattern in patterns))
    contents = {name: stream.read() for name, stream in wanted}
    if not contents:
        raise UserError("no member of the archive has such a name", found=", ".join(patterns))
    return contents


def extract(archive: IO[bytes], prefix: str, target: Path) -> list[str]:
    """Write the regular members under the archive folder ``prefix`` into ``target``; returns their names below it.

    Raises:
        UserError: as ``read``; nothing is written outside ``target``.
    """
    names = []
    for name, stream in _members(archive, lambda name: name.startswith(prefix)):
        path = target / name.removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
        names.append(name.removeprefix(prefix))
    if not names:
        raise UserError("the archive has no such folder", found=prefix)
    return names


def _members(archive: IO[bytes], wanted: Callable[[str], bool]) -> Iterator[tuple[str, IO[bytes]]]:
    archive.seek(0)
    is_zip = archive.read(2) == b"PK"
    archive.seek(0)
    return _zip_members(archive, wanted) if is_zip else _tar_members(archive, wanted)


def _zip_members(archive: IO[bytes], wanted: Callable[[str], bool]) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if info.is_dir() or not wanted(info.filename):
                continue
            _check(info.filename, is_link=stat.S_ISLNK(info.external_attr >> 16))
            with file.open(info) as stream:
                yield info.filename, stream


def _tar_members(archive: IO[bytes], wanted: Callable[[str], bool]) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(fileobj=archive) as file:
        for info in file:
            if info.isdir() or not wanted(info.name):
                continue
            _check(info.name, is_link=not info.isfile())
            stream = file.extractfile(info)
            assert stream is not None, "a regular file has contents"
            yield info.name, stream


def _check(name: str, is_link: bool) -> None:
    # A backslash or a drive letter is a path separator on some systems, whatever the archive meant by it.
    unsafe = PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name or ":" in name
    if unsafe:
        raise UserError("a member of the archive leaves the archive's folder", found=name, expected="a relative path")
    if is_link:
        raise UserError("a member of the archive is a link or a device", found=name, expected="a regular file")
