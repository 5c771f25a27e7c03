"""Image classification from parquet files of the hub's data sets, each of which a YAML file describes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from twin_merging import config
from twin_merging.errors import UserError, nearest
from twin_merging.mirror.folder import read_manifest
from twin_merging.mirror.piece import Piece
from twin_merging.progress import track
from twin_merging.tasks.base import SPLITS, TRAIN, RawTask
from twin_merging.tasks.image_files import IMAGE, LABEL, Columns, SourceImages, count_rows, parquet_rows
from twin_merging.tasks.image_rows import image_task, read_split

DESCRIBED = Path(__file__).with_name("hub_images")
MIRRORED = "vision_hub"
FORM = "hub: OWNER/NAME and splits: {train: data/train-*.parquet, test: data/test-*.parquet}"


@dataclass(frozen=True)
class Entry:
    """A data set of the hub.

    Args:
        hub: the repository.
        splits: by our name of a split, a pattern of its files, whose ``*`` stands for no slash.
        revision: a branch or commit; None: the main branch.
        image: the column of images.
        label: the column of class indices, or of false and true.
        names: of the classes by index; none: the repository's own.
    """

    hub: str
    splits: dict[str, str]
    revision: str | None = None
    image: str = IMAGE
    label: str = LABEL
    names: tuple[str, ...] = ()


class HubVision:
    """The data sets that ``tasks/hub_images`` describes, and those of the folder ``options.hub``.

    Only the files of the splits are fetched, at one commit, into the hub client's own cache.

    Args:
        options: ``hub``, a folder of more descriptions, which go before ours.
        paths: with a ``mirror`` nothing is fetched.

    Raises:
        UserError: if there is no such folder.
    """

    def __init__(self, options: config.VisionTasks, paths: config.Paths):
        self.mirror = Path(paths.mirror).expanduser() if paths.mirror else None
        self.folders = [DESCRIBED, *([Path(options.hub).expanduser()] if options.hub else [])]
        if not self.folders[-1].is_dir():
            raise UserError(
                "no such folder", key="tasks.hub", found=options.hub, expected="a folder of NAME.yaml files"
            )

    def known(self) -> tuple[str, ...]:
        """Names of all tasks."""
        return tuple(self._described)

    def assets(self, name: str) -> tuple[str, ...]:
        """No registry package is needed."""
        return ()

    def identity(self, name: str) -> dict[str, Any]:
        """What determines the raw rows: the commit, and how it is read.

        Raises:
            UserError: if it is not known, as no commit is named and the hub cannot be asked.
        """
        entry = self._entry(name)
        pinned = entry.revision if re.fullmatch("[0-9a-f]{40}", entry.revision or "") else None
        return {
            "source": "vision_hub", "task": name, "reader": 1, "hub": entry.hub, "commit": pinned or self._located(name)[1],
            "splits": entry.splits, "columns": [entry.image, entry.label], "names": list(entry.names),
        }  # fmt: skip

    def rows_to_mirror(self, name: str) -> Piece:
        """The hub's files of the splits."""
        entry, place = self._entry(name), f"{MIRRORED}/{name}"
        return Piece(
            f"rows {place}", place, hub=(entry.hub, "dataset"), revision=entry.revision,
            patterns=tuple(entry.splits.values()),
        )  # fmt: skip

    def load(self, name: str) -> RawTask:
        """The task's rows, each image hashed and left where it is.

        Raises:
            UserError: for a hub that cannot be reached, or files that are missing or not of the form that is described.
        """
        entry, (folder, commit) = self._entry(name), self._located(name)
        files = {split: _files(folder, pattern) for split, pattern in entry.splits.items()}
        names, columns = _names(entry, files[TRAIN][0], name), Columns(entry.image, entry.label)
        images, splits = SourceImages(entry.image), {}
        for split, mine in files.items():
            rows = (row for file in mine for row in parquet_rows(file, columns))
            numbered = (row._replace(label=int(row.label)) if isinstance(row.label, bool) else row for row in rows)
            total = sum(count_rows(file, columns) for file in mine)
            splits[split] = read_split(track(numbered, f"{name}: {split} images", total, "images"), images, names)
        provenance = {
            "source": f"{entry.hub} at {commit}",
            "licence": "see the data set's page on the hub",
            "splits": {split: f"{pattern} of {entry.hub}" for split, pattern in entry.splits.items()},
        }
        return image_task(name, names, splits, images, provenance)

    @cached_property
    def _described(self) -> dict[str, Path]:
        return {path.stem: path for folder in self.folders for path in sorted(folder.glob("*.yaml"))}

    def _entry(self, name: str) -> Entry:
        return read_entry(self._described[name])

    def _located(self, name: str) -> tuple[Path, str]:
        """The folder of a task's files, fetched if need be, and the commit that they are of."""
        if self.mirror is not None:
            listed = read_manifest(self.mirror).get(f"rows {MIRRORED}/{name}")
            if listed is None:
                raise UserError(
                    f"the images of {name} are not in the mirror", key="paths.mirror", found=self.mirror,
                    hint="scripts/mirror.py fetches them where a network is",
                )  # fmt: skip
            return self.mirror / listed.place, listed.origin["commit"]
        folder = _fetched(self._entry(name), name)
        return folder, folder.name


def read_entry(path: Path) -> Entry:
    """A description of a data set.

    Raises:
        UserError: if it is not of the form.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"not valid YAML ({' '.join(str(error).split())[:200]})", key=str(path), expected=FORM
        ) from error
    known = [field.name for field in fields(Entry)]
    if not isinstance(content, dict):
        raise UserError("not an object", key=str(path), found=content, expected=FORM)
    for key in content:
        if key not in known:
            raise UserError(
                "an unknown key", key=f"{path}: {key}", expected=", ".join(known), nearest=nearest(key, known)
            )
    splits, names = content.get("splits"), content.get("names", [])
    texts = [value for key, value in content.items() if key not in ("splits", "names")]
    if "hub" not in content or not all(isinstance(value, str) for value in texts):
        raise UserError(
            "hub, revision, image and label are texts, of which hub is needed", key=str(path), expected=FORM
        )
    if (
        not isinstance(splits, dict)
        or not {TRAIN} <= {*splits} <= {*SPLITS}
        or not all(map(_is_pattern, splits.values()))
    ):
        raise UserError("these are no patterns of splits", key=f"{path}: splits", found=splits, expected=FORM)
    is_strings = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    if not is_strings or len(set(names)) != len(names):
        raise UserError(
            "the classes are not distinct names", key=f"{path}: names", found=names, expected="a list of texts"
        )
    return Entry(**{**content, "names": tuple(names)})


def _is_pattern(value: Any) -> bool:
    return isinstance(value, str) and value.endswith(".parquet") and ".." not in value and not value.startswith("/")


def _fetched(entry: Entry, name: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = list(entry.splits.values())
    try:
        return Path(snapshot_download(entry.hub, repo_type="dataset", revision=entry.revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises dozens of types for no network, a proxy, a login, a full disk
        raise UserError(
            f"cannot read {entry.hub} from the hub ({type(error).__name__}: {' '.join(str(error).split())[:200]})",
            key="paths.data",
            found=f"no folder vision/{name}",
            expected=f"a folder with vision/{name}/train.parquet, test.parquet and labels.json, or a network",
            hint="scripts/mirror.py fetches it for machines without one",
        ) from error


def _files(folder: Path, pattern: str) -> list[Path]:
    """A split's files in the order of their rows; each shard says how many there are."""
    found = sorted(folder.glob(pattern))
    counts = {int(match[1]) for file in found if (match := re.search(r"-of-(\d{5})\b", file.name))}
    if not found or counts - {len(found)}:
        raise UserError(
            "files are missing", key=str(folder), found=f"{len(found)} that match {pattern}",
            expected=f"{max(counts)} shards" if counts else "at least one", hint="where a network is, they are fetched",
        )  # fmt: skip
    return found


def _names(entry: Entry, file: Path, name: str) -> tuple[str, ...]:
    """The classes: those that are described, or else the repository's own; as many as these are, where it has them."""
    own = _own_names(file, entry.label)
    if not (entry.names or own) or (entry.names and own and len(own) != len(entry.names)):
        raise UserError(
            "the classes are not known" if not entry.names else "there are not as many classes",
            key=f"names of {name}", found=f"{len(entry.names)} described", expected=f"{len(own) or 'names'}, as in {entry.hub}",
        )  # fmt: skip
    return entry.names or own


def _own_names(file: Path, column: str) -> tuple[str, ...]:
    """What ``datasets`` wrote of the classes into a parquet file; none if it has nothing of the kind."""
    import pyarrow.parquet

    try:
        written = json.loads((pyarrow.parquet.read_schema(file).metadata or {})[b"huggingface"])
        return tuple(written["info"]["features"][column]["names"])
    except (KeyError, TypeError, ValueError, OSError):
        return ()
