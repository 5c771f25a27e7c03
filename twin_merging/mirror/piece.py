"""A piece of what an experiment needs, and where it is fetched from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from twin_merging import assets


@dataclass(frozen=True)
class Piece:
    """Something to mirror: an ``asset``, files of a ``hub`` repository, or local ``files``; one of the three is set.

    Args:
        key: what the manifest lists it under.
        place: its folder below the mirror.
        hub: the repository's name, and its type ``model`` or ``dataset``.
        patterns: of the repository's files, which.
        inside: the repository's folder that becomes ``place``; empty for all of it.
        files: local files by their path below ``place``.
        weights: whether it has to hold safetensors.
    """

    key: str
    place: str
    asset: str | None = None
    hub: tuple[str, str] | None = None
    revision: str | None = None
    patterns: tuple[str, ...] = ()
    inside: str = ""
    files: dict[str, Path] | None = field(default=None, compare=False)
    weights: bool = False

    @property
    def origin(self) -> str:
        """Where it is fetched from, in words."""
        if self.asset:
            return f"registry package {assets.find(self.asset).requirement}"
        if self.hub:
            return f"hub {self.hub[1]} {self.hub[0]}" + (f" at {self.revision[:12]}" if self.revision else "")
        return "local files"

    @property
    def size(self) -> int | None:
        """Bytes, where that is known before fetching."""
        if self.asset:
            return assets.find(self.asset).size
        return None if self.files is None else sum(path.stat().st_size for path in self.files.values())


def hub_rows(place: str, repository: str, revision: str, inside: str, stems: Sequence[str]) -> Piece:
    """The rows of one configuration of a hub dataset: its parquet files whose names begin with some stem."""
    patterns = tuple(f"{inside}/{stem}-*.parquet" for stem in stems)
    return Piece(
        f"rows {place}", place, hub=(repository, "dataset"), revision=revision, patterns=patterns, inside=inside
    )


def local_rows(place: str, folder: Path, files: Sequence[Path]) -> Piece:
    """The rows of a task from files below ``folder``."""
    return Piece(f"rows {place}", place, files={path.relative_to(folder).as_posix(): path for path in files})
