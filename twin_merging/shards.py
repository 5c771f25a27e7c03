"""Safetensors shards written piece by piece, in any order and from several threads, in the memory of a piece."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from twin_merging.checkpoints import INDEX, SINGLE
from twin_merging.safetensors_format import Entry, header_of


def split(entries: Mapping[str, Entry], max_bytes: int) -> list[dict[str, Entry]]:
    """The tensors in their order, cut into shards of at most ``max_bytes``; a larger tensor has one for itself."""
    shards: list[dict[str, Entry]] = [{}]
    used = 0
    for name, entry in entries.items():
        if used + entry.nbytes > max_bytes and shards[-1]:
            shards.append({})
            used = 0
        shards[-1][name] = entry
        used += entry.nbytes
    return shards


class ShardWriter:
    """A Hugging Face folder's weight files, of which every byte's place is known before the first is written.

    A shard lies under a temporary name until all its bytes are on the disk. Shards that an earlier writer of the same
    entries finished in this folder are kept.

    Args:
        folder: where; it must exist.
        entries: every tensor to be written, in the order of the shards.
        max_bytes: of the numbers of a shard.
    """

    def __init__(self, folder: Path, entries: Mapping[str, Entry], max_bytes: int):
        self.folder = folder
        parts = split(entries, max_bytes)
        names = [SINGLE]
        if len(parts) > 1:
            names = [f"model-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1)]
        self.shards = dict(zip(names, parts, strict=True))
        shards = {file: _Shard(folder / file, part) for file, part in self.shards.items()}
        self._shard_of = {name: shards[file] for file, part in self.shards.items() for name in part}
        self.pending = [name for name in entries if not self._shard_of[name].finished]
        for shard in shards.values():
            shard.begin()

    def write(self, name: str, start: int, piece: Tensor) -> None:
        """Write a flat piece of the tensor ``name`` from number ``start`` on, in the dtype of its entry.

        Each number has to be written exactly once.
        """
        self._shard_of[name].write(name, start, piece)

    def finish(self) -> None:
        """Write the index of the shards, if there are several."""
        assert all(shard.finished for shard in self._shard_of.values()), "numbers are missing"
        if len(self.shards) > 1:
            total = sum(entry.nbytes for part in self.shards.values() for entry in part.values())
            where = {name: file for file, part in self.shards.items() for name in part}
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (self.folder / INDEX).write_text(json.dumps(index, indent=1))


class _Shard:
    """One file and how many of its bytes are still to come."""

    def __init__(self, path: Path, entries: Mapping[str, Entry]):
        self.path, self.entries = path, entries
        self.unfinished = path.with_name(f".{path.name}.unfinished")
        self.finished = path.is_file()
        self._header, self._starts = header_of(entries)
        self._left = sum(entry.nbytes for entry in entries.values())
        self._lock, self._file = Lock(), -1

    def begin(self) -> None:
        """A shard of empty tensors alone has no piece to wait for."""
        if not self.finished and not self._left:
            self._open()
            self._close()

    def write(self, name: str, start: int, piece: Tensor) -> None:
        entry = self.entries[name]
        assert piece.dtype == entry.dtype, f"{name}: {piece.dtype} is not {entry.dtype}"
        assert 0 <= start <= start + piece.numel() <= entry.numel, f"{name}: numbers from {start} on do not fit"
        if not piece.numel():
            return
        with self._lock:
            if self._file < 0:
                self._open()
        numbers = piece.contiguous().view(-1).view(torch.uint8).numpy().data
        at = self._starts[name] + start * entry.dtype.itemsize
        written = 0
        while written < len(numbers):  # one call takes at most 2 GiB
            written += os.pwrite(self._file, numbers[written:], at + written)
        with self._lock:
            self._left -= len(numbers)
            done = not self._left
        if done:
            self._close()

    def _open(self) -> None:
        self._file = os.open(self.unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        os.ftruncate(self._file, len(self._header) + self._left)
        os.pwrite(self._file, self._header, 0)

    def _close(self) -> None:
        os.fsync(self._file)
        os.close(self._file)
        os.replace(self.unfinished, self.path)
        self.finished = True
