"""Any image classification: from a folder of the user's or a mirror, else from the offline assets, else from the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from twin_merging import config
from twin_merging.checksums import sha256_of
from twin_merging.errors import UserError, unknown
from twin_merging.mirror.piece import Piece, local_rows
from twin_merging.progress import track
from twin_merging.tasks.base import SPLITS, TRAIN, RawTask
from twin_merging.tasks.image_files import (
    Row,
    SourceImages,
    class_folders,
    count_rows,
    files_beside,
    folder_rows,
    image_files,
    parquet_rows,
)
from twin_merging.tasks.image_rows import image_task, read_split
from twin_merging.tasks.tables import find_parquet
from twin_merging.tasks.vision_hub import HubVision

FOLDER = "vision"
LABELS = "labels.json"
FORM = '{"names": ["cat", "dog"]}, the name of each class index'
LAYOUT = "train.parquet, its shards train-00000-of-00002.parquet, or image files in train/CLASS/"


class Vision:
    """``data``/vision/NAME/ with train and test, and if need be validation, in one of two layouts.

    - ``train.parquet``, or its shards as the hub names them: ``image``, which is binary or {bytes, path}, and ``label``, a
      class index or name. ``labels.json`` beside it has the classes: ``{"names": [...]}``.
    - ``train/CLASS/*.png``, or JPEG, BMP, WebP, PPM, TIFF. Without ``labels.json`` the classes are the sorted folder names.

    A split that is missing is cut from train.

    Args:
        options: where more data sets of the hub are described; a source reads whole splits.
        paths: a task is read from ``data`` if it is there, else from ``mirror``; else it is one of the offline assets', or of the
            hub's (``HubVision``).

    Raises:
        UserError: if ``paths.data`` is no folder.
    """

    def __init__(self, options: config.VisionTasks, paths: config.Paths):
        self.options, self.paths = options, paths
        if paths.data and not Path(paths.data).expanduser().is_dir():  # else the hub's images would take its place
            raise UserError(
                "no such folder", key="paths.data", found=paths.data, expected=f"a folder with {FOLDER}/NAME/ in it"
            )
        self.folders = [Path(path).expanduser() / FOLDER for path in (paths.data, paths.mirror) if path]

    def known(self) -> tuple[str, ...]:
        """Names of all tasks: of folders, of the offline assets, and of the hub."""
        return tuple(sorted({*self._folders(), *self._offline.known(), *self._hub.known()}))

    def assets(self, name: str) -> tuple[str, ...]:
        """Assets that the task is read from."""
        return () if name in self._folders() else self._elsewhere(name).assets(name)

    def identity(self, name: str) -> dict[str, Any]:
        """What determines the raw rows: the SHA-256 of each file, or one of all of them where images have files of their own."""
        if name not in self._folders():
            return self._elsewhere(name).identity(name)
        folder = self._folders()[name]
        hashes = {path.relative_to(folder).as_posix(): sha256_of(path) for path in _files(folder)}
        return {"source": "vision", "task": name, "reader": 1, "files": _short(hashes)}

    def rows_to_mirror(self, name: str) -> Piece | list[Piece]:
        """The task's files."""
        if name not in self._folders():
            return self._elsewhere(name).rows_to_mirror(name)
        folder = self._folders()[name]
        return local_rows(f"{FOLDER}/{name}", folder, _files(folder))

    def load(self, name: str) -> RawTask:
        """The task's rows, each image hashed and left where it is.

        Raises:
            UserError: for an unknown task, or a file that is missing, unreadable or not of the form above.
        """
        if name not in self._folders():
            return self._elsewhere(name).load(name)
        folder = self._folders()[name]
        about = _read_labels(folder)
        names, images, splits, origin = about["names"], SourceImages(), {}, {}
        for split, files in _splits(folder).items():
            rows = track(_rows(folder / split, files), f"{name}: {split} images", _count(files), "images")
            splits[split] = read_split(rows, images, names)
            origin[split] = files[0].name if len(files) == 1 else f"{split}, {len(files)} files"
        provenance = {
            "source": f"local files, {FOLDER}/{name}",
            "licence": "the user's",
            **({"note": about["note"]} if "note" in about else {}),
            "splits": origin,
        }
        return image_task(name, names, splits, images, provenance)

    def _folders(self) -> dict[str, Path]:
        """The folder of each local task; those of ``data`` go before those of ``mirror``."""
        places = (place for folder in reversed(self.folders) if folder.is_dir() for place in folder.iterdir())
        return {place.name: place for place in places if _is_task(place)}

    @cached_property
    def _offline(self) -> Any:
        from twin_merging.tasks.offline_vision import OfflineVision

        return OfflineVision(self.options, self.paths)

    @cached_property
    def _hub(self) -> HubVision:
        return HubVision(self.options, self.paths)

    def _elsewhere(self, name: str) -> Any:
        """What has a task that is no folder."""
        for source in (self._offline, self._hub):
            if name in source.known():
                return source
        places = ", ".join(map(str, self.folders)) or "paths.data, which is null"
        raise unknown("tasks.names", name, self.known(), f"task, which is no folder of {places}")


def _is_task(folder: Path) -> bool:
    if not folder.is_dir() or folder.name.startswith("."):
        return False
    splits = ((folder / split).is_dir() or any(folder.glob(f"{split}*.parquet")) for split in SPLITS)
    return (folder / LABELS).is_file() or any(splits)


def _splits(folder: Path) -> dict[str, list[Path]]:
    """By split, its parquet files, or else its image files.

    Raises:
        UserError: if there is no train split.
    """
    found = {split: find_parquet(folder, split) or _image_files(folder / split) for split in SPLITS}
    if not found[TRAIN]:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:5])
        raise UserError("there is no train split", key=str(folder), found=there, expected=LAYOUT)
    return {split: files for split, files in found.items() if files}


def _image_files(folder: Path) -> list[Path]:
    return [file for place in class_folders(folder) for file in image_files(place)] if folder.is_dir() else []


def _rows(folder: Path, files: list[Path]) -> Iterator[Row]:
    if files[0].suffix == ".parquet":
        return chain.from_iterable(map(parquet_rows, files))
    return folder_rows(folder)


def _count(files: list[Path]) -> int:
    return sum(count_rows(file) if file.suffix == ".parquet" else 1 for file in files)


def _files(folder: Path) -> list[Path]:
    """All files that determine a task's rows."""
    files = [file for files in _splits(folder).values() for file in files]
    beside = [image for file in files if file.suffix == ".parquet" for image in files_beside(file)]
    labels = [folder / LABELS] if (folder / LABELS).is_file() else []
    return list(dict.fromkeys([*labels, *files, *beside]))


def _short(hashes: dict[str, str]) -> dict[str, str]:
    """Hashes by file, of which those of images, thousands of them, become one."""
    images = {name: value for name, value in hashes.items() if not name.endswith((".parquet", ".json"))}
    rest = {name: value for name, value in hashes.items() if name not in images}
    if images:
        rest[f"{len(images)} images"] = hashlib.sha256(json.dumps(images, sort_keys=True).encode()).hexdigest()
    return rest


def _read_labels(folder: Path) -> dict[str, Any]:
    """The checked content of a ``labels.json``, or what the class folders say."""
    path = folder / LABELS
    if not path.is_file():
        if not (folder / TRAIN).is_dir():
            raise UserError("the file is missing", key=str(path), expected=FORM)
        return {"names": _checked_names([place.name for place in class_folders(folder / TRAIN)], folder / TRAIN)}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"not valid JSON ({error})", key=str(path), expected=FORM) from error
    if not isinstance(about, dict):
        raise UserError("not an object", key=str(path), found=about, expected=FORM)
    note = {"note": about["note"]} if isinstance(about.get("note"), str) else {}
    return {**note, "names": _checked_names(about.get("names"), path)}


def _checked_names(names: Any, path: Path) -> tuple[str, ...]:
    is_strings = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    if not is_strings or not len(set(names)) == len(names) >= 2:
        raise UserError("the classes are not two or more distinct names", key=str(path), found=names, expected=FORM)
    return tuple(names)
