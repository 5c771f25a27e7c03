"""Checkpoints as mappings from name to tensor: read lazily, written atomically, checked before use."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from twin_merging.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Checkpoint(Mapping[str, Tensor]):
    """A safetensors file, or a folder that holds one (sharded or not): a tensor is read when it is asked for.

    Args:
        path: the file or folder.
        prefix: only names that start with it, and without it.

    Raises:
        UserError: if there is no safetensors file, a shard is missing, or a file is damaged.
    """

    def __init__(self, path: Path, prefix: str = ""):
        self.path, self.prefix = path, prefix
        self._files = {}
        for file in weight_files(path):
            handle = _open(file)
            self._files.update({name[len(prefix) :]: handle for name in handle.keys() if name.startswith(prefix)})  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(self.prefix + name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._files[name].get_slice(self.prefix + name).get_shape())


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file under a temporary name, then rename it into place."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def check(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], what: str) -> None:
    """Check that ``tensors`` has the names and shapes of ``like`` and that every number is finite.

    Raises:
        UserError: for the first tensor that is missing, unexpected, of another shape, or not finite.
    """
    for name in sorted(set(like) - set(tensors)):
        raise UserError(
            "a tensor is missing",
            key=f"{what}: {name}",
            found=f"{len(tensors)} tensors",
            expected=f"{len(like)} tensors",
        )
    for name in sorted(set(tensors) - set(like)):
        raise UserError(
            "a tensor that the base does not have", key=f"{what}: {name}", expected=f"the base's {len(like)} tensors"
        )
    for name, reference in like.items():
        tensor = tensors[name]
        if tensor.shape != reference.shape:
            raise UserError(
                "a tensor of the wrong shape", key=f"{what}: {name}", found=list(tensor.shape),
                expected=f"{list(reference.shape)}, as in the base", hint="experts and base must be of one architecture",
            )  # fmt: skip
        check_finite(tensor, f"{what}: {name}")


def check_finite(tensor: Tensor, what: str) -> None:
    """Raise a UserError that counts the NaN and infinite entries of ``tensor``, if there are any."""
    if not tensor.is_floating_point() or torch.isfinite(tensor.sum(dtype=torch.float32)):
        return  # one NaN or infinity and the sum is not finite; a sum can also be too large without any
    if not torch.isfinite(tensor).all():
        bad = int((~torch.isfinite(tensor)).sum())
        raise UserError("a tensor holds NaN or infinity", key=what, found=f"{bad} of {tensor.numel()} entries")


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a folder, sharded or not, or the file itself.

    Raises:
        UserError: if there is none, or a shard is missing.
    """
    if path.is_file():
        return [path]
    if (path / INDEX).is_file():
        names = _shards(path / INDEX)
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise UserError(
                "a shard is missing", key=str(path / missing[0]), expected=f"{len(names)} shards listed in {INDEX}"
            )
        return [path / name for name in names]
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    raise UserError(
        "no safetensors checkpoint", key=str(path), expected=f"{SINGLE} or {INDEX}", hint="pickled weights are not read"
    )


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            "a damaged index of shards", key=str(index), expected="JSON with weight_map", hint="fetch or copy it again"
        ) from error


def _open(file: Path):
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise UserError(
            f"a damaged safetensors file ({error})", key=str(file), found=f"{file.stat().st_size} bytes",
            expected="a complete file", hint="fetch or copy it again",
        ) from error  # fmt: skip
