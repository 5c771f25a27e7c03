"""Tensors that are found one parameter after the other: each parameter a file at once, all of them one file at the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from twin_merging import checkpoints
from twin_merging.safetensors_format import header_of, read_header


class Parts:
    """A folder with a safetensors file a parameter, so that a killed process loses no more than what it was computing.

    Args:
        folder: made if it does not exist. What an earlier process put there counts as done.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that have no file yet."""
        return [name for name in names if not self._file(name).is_file()]

    def add(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write what was found of a parameter; from any thread, once for each name."""
        checkpoints.save(tensors, self._file(name))

    def move(self, folder: Path) -> None:
        """Move all files, as they are, to a folder of the same file system."""
        for file in self._files():
            os.replace(file, folder / file.name)

    def join(self, path: Path) -> None:
        """Make all files one, under another name until it is complete, and remove them. One tensor at a time is in memory."""
        headers = {file: read_header(file) for file in self._files()}
        header, starts = header_of({name: entry for found, _, _ in headers.values() for name, entry in found.items()})
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with unfinished.open("wb") as whole:
                whole.write(header)
                for file, (entries, places, _) in headers.items():
                    with file.open("rb") as part:
                        for name, entry in entries.items():
                            part.seek(places[name])
                            whole.seek(starts[name])
                            whole.write(part.read(entry.nbytes))
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        shutil.rmtree(self.folder)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))
