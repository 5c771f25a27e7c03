"""What a mirror holds: its manifest, with each file's size and SHA-256, and how a piece is found in it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from twin_merging.checksums import check_file, sha256_of
from twin_merging.errors import UserError

MANIFEST = "mirror.json"
VERSION = 1
ASSETS = "assets"
"""The folder of a mirror that is an asset folder."""


@dataclass(frozen=True)
class Entry:
    """A piece that a mirror holds.

    Args:
        place: its folder below the mirror.
        origin: plain JSON: where it was fetched from; of a hub repository its ``hub`` name and ``commit``.
        files: by path below the mirror, (SHA-256, bytes).
    """

    place: str
    origin: dict[str, Any]
    files: dict[str, tuple[str, int]]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(size for _, size in self.files.values())


def model_key(name: str, revision: str | None) -> str:
    """What the manifest lists a model under: the name that a configuration gives it, and the revision if it gives one."""
    return f"model {name}" + (f"@{revision}" if revision else "")


def find_model(mirror: Path, name: str, revision: str | None) -> tuple[Path, str | None] | None:
    """A model's folder and its commit on the hub (None of a copied folder); None if the mirror does not list it."""
    entry = read_manifest(mirror).get(model_key(name, revision))
    return None if entry is None else (mirror / entry.place, entry.origin.get("commit"))


def read_manifest(mirror: Path) -> dict[str, Entry]:
    """Every piece by its key; of a folder that is no mirror yet, none.

    Raises:
        UserError: if the manifest cannot be read.
    """
    path = mirror / MANIFEST
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise UserError("a mirror of another version", key=str(path), found=content["version"], expected=VERSION)
        pieces = {
            key: Entry(piece["place"], piece["origin"], {name: tuple(known) for name, known in piece["files"].items()})
            for key, piece in content["pieces"].items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the mirror's manifest cannot be read ({type(error).__name__}: {error})", key=str(path),
            hint="remove it and mirror again: files that are there are not fetched anew",
        ) from error  # fmt: skip
    for entry in pieces.values():
        for name in (entry.place, *entry.files):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise UserError(
                    "a path that leads out of the mirror", key=str(path), found=name, expected="a path in it"
                )
    return pieces


def add(mirror: Path, key: str, entry: Entry) -> None:
    """List a piece, in one step: a killed process leaves the old manifest or the new one."""
    pieces = {**read_manifest(mirror), key: entry}
    content = {
        "version": VERSION,
        "pieces": {
            name: {"place": piece.place, "origin": piece.origin, "files": piece.files}
            for name, piece in sorted(pieces.items())
        },
    }
    temporary = mirror / f".{MANIFEST}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(mirror / MANIFEST)


def hashed(mirror: Path, files: Iterable[Path]) -> dict[str, tuple[str, int]]:
    """Size and SHA-256 of files, by their path below the mirror."""
    return {path.relative_to(mirror).as_posix(): (sha256_of(path), path.stat().st_size) for path in sorted(files)}


def verify(mirror: Path, hint: str) -> dict[str, Entry]:
    """Check every file against the manifest and return the pieces.

    Raises:
        UserError: if the folder is no mirror, or a file is not what it was; ``hint`` says what to do.
    """
    pieces = read_manifest(mirror)
    if not pieces:
        raise UserError(
            "no mirror", key="out", found=mirror, expected=f"a folder with a {MANIFEST} that lists something"
        )
    for entry in pieces.values():
        check_entry(mirror, entry, hint)
    return pieces


def check_entry(mirror: Path, entry: Entry, hint: str) -> None:
    """Check every file of a piece, and that there is no other one in its folder, which might be read in its stead.

    Raises:
        UserError: for a file that is missing, not what it was, elsewhere by a link, or not listed.
    """
    for name, (sha256, size) in entry.files.items():
        if not (mirror / name).resolve().is_relative_to(mirror.resolve()):
            raise UserError(
                "a link that leads out of the mirror", key=str(mirror / name), found=(mirror / name).resolve(),
                expected="a file in the mirror", hint=hint,
            )  # fmt: skip
        check_file(mirror / name, sha256, size, hint)
    if entry.place == ASSETS:  # of all assets, each with its own check
        return
    for path in (mirror / entry.place).rglob("*"):
        name = path.relative_to(mirror).as_posix()
        if name not in entry.files and not path.is_dir():
            raise UserError(
                f"a file that {MANIFEST} does not list", key=name, found=path, expected="what was fetched", hint="remove it"
            )  # fmt: skip
