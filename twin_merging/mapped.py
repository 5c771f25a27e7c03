"""A checkpoint read through shared, read-only mappings of its files: it takes address space, and no memory of the process."""

from __future__ import annotations

import hashlib
import mmap
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from twin_merging.checkpoints import weight_files
from twin_merging.safetensors_format import Entry, read_header


class MappedCheckpoint(Mapping[str, Tensor]):
    """The tensors of a safetensors file or folder, each a view of the file. They must never be written to.

    Unlike ``Checkpoint``, whose private mappings count as data of the process, this one opens models of any size under
    any limit on memory, and every shape and dtype is known before a number is read.

    Args:
        path: the file or folder.

    Raises:
        UserError: if there is no safetensors file, a shard is missing, or a file is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        self.entries: dict[str, Entry] = {}
        self._places: dict[str, tuple[_File, int]] = {}
        self.files = [_File(file) for file in weight_files(path)]
        for file in self.files:
            self.entries |= file.entries
            self._places |= {name: (file, start) for name, start in file.starts.items()}

    def __getitem__(self, name: str) -> Tensor:
        (file, start), entry = self._places[name], self.entries[name]
        numbers = file.numbers[start : start + entry.nbytes]
        if start % entry.dtype.itemsize:  # the format asks for no alignment, torch does
            numbers = numbers.clone()
        return numbers.view(entry.dtype).view(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def identity(self) -> dict[str, dict[str, int | str]]:
        """By file: its bytes and the SHA-256 of its header, which has every name, shape and dtype."""
        return {file.path.name: {"bytes": file.size, "header_sha256": file.header_sha256} for file in self.files}


class _File:
    """One file: its header at once, its numbers when they are asked for."""

    def __init__(self, path: Path):
        self.path, self.size = path, path.stat().st_size
        self.entries, self.starts, header = read_header(path)
        self.header_sha256 = hashlib.sha256(header).hexdigest()
        self._lock = Lock()

    @property
    def numbers(self) -> Tensor:
        """All bytes of the file."""
        with self._lock:
            return self._mapped

    @cached_property
    def _mapped(self) -> Tensor:
        with self.path.open("rb") as stream:
            view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the mapping cannot be written to, as is meant
            return torch.frombuffer(view, dtype=torch.uint8)
