"""A result's folder: unfinished beside ``out`` until it is whole, and taken up again after a kill."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twin_merging.checkpoints import INDEX, check_finite
from twin_merging.config import bytes_of, merge_methods
from twin_merging.errors import UserError
from twin_merging.merging.apply import merge_into
from twin_merging.merging.method import At, Kind, bind, kind_of
from twin_merging.merging.stack import TURN, Stack
from twin_merging.shards import ShardWriter
from twin_merging.standalone.adapters import Adapter
from twin_merging.standalone.layout import Layout
from twin_merging.standalone.options import MergeOptions
from twin_merging.standalone.sources import FETCHED, Source

COPIED = FETCHED[1:]  # all that is no weights
NOT_COPIED = (
    INDEX,
    "pytorch_model.bin.index.json",
    "tf_model.h5.index.json",
    "files.json",
    "manifest.json",
    "expert.json",
)
"""Indices of weights that are written anew, and what assets and artefacts record of themselves."""
PLAN = "merge-plan.json"


@contextmanager
def unfinished(out: Path, plan: Mapping[str, Any]) -> Iterator[Path]:
    """A folder that becomes ``out`` at the end of the block.

    What an earlier process left of the same plan is found in it; what is left of another one is removed. A ``UserError``
    removes the folder, since the same command would fail again; anything else, such as a kill, leaves it.

    Raises:
        UserError: if another process writes it at this moment.
    """
    folder = _unfinished_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(plan, sort_keys=True)
    with (folder / PLAN).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError("another process writes there", key="out", found=out) from error
        file.seek(0)
        if file.read() != content:
            _empty(folder)
            file.truncate(0)
            file.write(content)
            file.flush()
        try:
            check_new(out)  # which the process that held the lock may have written
            yield folder
        except UserError:
            shutil.rmtree(folder)
            raise
        (folder / PLAN).unlink()
        os.replace(folder, out)


def fingerprint(options: MergeOptions, plain: Mapping[str, Any], sources: list[Source]) -> dict[str, Any]:
    """What has to be the same for a merge to be taken up again: options, inputs and the code of plugins."""
    names = {options.merge_method.name, getattr(getattr(options.merge_method, "shared", None), "name", None)} - {None}
    return {
        "options": {key: value for key, value in plain.items() if key != "out"},
        "code": {name: merge_methods[name].code_hash() for name in sorted(names)},
        "inputs": [[source.identity(), source.changes()] for source in sources],
    }


def write_model(options: MergeOptions, method: Any, base: Source, layout: Layout, folder: Path) -> list[str]:
    """Merge into the weight files of ``folder``, and copy the base's configuration and tokenizer there.

    What no adapter changes stays the base's, as any of our methods would leave it: half of a language model may be one matrix.

    Returns:
        The weight files' names.

    Raises:
        UserError: if an input holds NaN or infinity, or the result would.
    """
    dtype = None if options.dtype == "base" else getattr(torch, options.dtype)
    entries = {
        name: entry._replace(dtype=dtype) if dtype and entry.dtype.is_floating_point else entry
        for name, entry in layout.base.entries.items()
    }
    copy_files(base.folder, folder, dtype)
    writer = ShardWriter(folder, entries, bytes_of(options.max_shard_size, "max_shard_size"))
    stack = Stack(layout.base, layout.experts, layout.selected)
    chosen = set(layout.changed if isinstance(merge_methods[method.name].target, str) else stack.names)
    for name in writer.pending:
        if name not in chosen:
            numbers = layout.base[name].reshape(-1)
            for start in range(0, len(numbers), TURN):
                piece = numbers[start : start + TURN].to(entries[name].dtype)
                check_finite(piece, f"base: {name}")
                writer.write(name, start, piece)
    names = [name for name in writer.pending if name in chosen]
    try:
        merge_into(writer.write, guarded(method, layout), method, stack, seed=options.seed, names=names, dtype=dtype)
    except UserError as error:
        _blame(layout, str(error.key).rpartition(": ")[2])
        raise
    writer.finish()
    return list(writer.shards)


def copy_files(source: Path, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Copy configuration, tokenizer and modelling code, with the weights' ``dtype`` in config.json if it changed."""
    for file in sorted({file for pattern in COPIED for file in source.glob(pattern)}):
        if file.name not in NOT_COPIED:
            shutil.copyfile(file, folder / file.name)
    if dtype is not None:
        config = json.loads((folder / "config.json").read_text())
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(dtype).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps(config, indent=2))


def guarded(options: Any, layout: Layout) -> Any:
    """The method that ``options`` name, made safe for inputs that are files.

    It is handed whole matrices where an expert is an adapter, since each piece would make the matrix anew; what it
    computes from NaN it might hide; and what a plugin is handed it may overwrite, which a file's mapping must not be.
    """
    component = merge_methods[options.name]
    method = component.load()
    kind: Kind = kind_of(method)
    call: Callable[..., Tensor] = bind(method, options)
    flat = kind.elementwise and any(isinstance(expert, Adapter) for expert in layout.experts)
    foreign = not isinstance(component.target, str)

    def guard(base: Tensor, stacked: Any, _: Any, at: At) -> Tensor:
        if isinstance(stacked, Tensor) and not torch.isfinite(stacked.sum()):
            _blame(layout, at.name)
        if foreign:
            base = base.clone()
            stacked = stacked if isinstance(stacked, Tensor) else [each.clone() for each in stacked]
        if not flat:
            return call(base, stacked, at)
        rows = (
            stacked.reshape(len(stacked), -1) if isinstance(stacked, Tensor) else [each.reshape(-1) for each in stacked]
        )
        return call(base.reshape(-1), rows, at).view(base.shape)

    guard.kind = replace(kind, elementwise=kind.elementwise and not flat)  # type: ignore[attr-defined]
    return guard


def _blame(layout: Layout, name: str) -> None:
    """Raise the error for the input whose tensor ``name`` holds NaN or infinity, if one does."""
    if name in layout.selected:
        check_finite(layout.base[name], f"base: {name}")
        for number, expert in enumerate(layout.experts):
            check_finite(expert[name], f"experts[{number}]: {name}")


def check_new(out: Path) -> None:
    """Check that there is nothing in ``out``.

    Raises:
        UserError: if it is a file, or a folder that holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            "this exists already and nothing is ever overwritten",
            key="out",
            found=out,
            expected="a new or empty folder",
        )


def check_space(out: Path, needed: int) -> None:
    """Check that the disk has room for ``needed`` bytes, less those that an earlier process has written.

    Raises:
        UserError: if it has not.
    """
    place = out.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    needed -= sum(512 * file.stat().st_blocks for file in _unfinished_folder(out).rglob("*"))
    if free < needed:
        raise UserError(
            "not enough disk space",
            key="out",
            found=f"{free / 1e6:.0f} MB free at {place}",
            expected=f"{needed / 1e6:.0f} MB",
        )


def _unfinished_folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.unfinished")


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        if file.is_dir():
            shutil.rmtree(file)
        elif file.name != PLAN:
            file.unlink()
