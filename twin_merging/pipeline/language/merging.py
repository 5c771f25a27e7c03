"""What the stages of merging compute: the tensors that differ from θ₀, and what only one expert knows."""

from __future__ import annotations

import json
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from twin_merging.config import merge_methods
from twin_merging.experts.published import source_of
from twin_merging.mapped import MappedCheckpoint
from twin_merging.merging.apply import merge_into
from twin_merging.merging.stack import Stack
from twin_merging.merging.twin import exclusive_knowledge
from twin_merging.parameters import select
from twin_merging.parts import Parts
from twin_merging.pipeline.exclusive import write_basis, write_exclusive
from twin_merging.pipeline.language.grid import merged_by_grid
from twin_merging.pipeline.language.read import CHOICES, MERGED, changes_in, layout_of, shared_changes
from twin_merging.sparsifiers.storage import room
from twin_merging.sparsifiers.stored import tensors_of
from twin_merging.standalone.adapter_output import obstacle, write_adapter
from twin_merging.standalone.adapter_twin import factored_knowledge
from twin_merging.standalone.layout import Layout
from twin_merging.standalone.options import MergeOptions

if TYPE_CHECKING:
    from twin_merging.pipeline.language.stages import LanguageStages


def merged(stages: LanguageStages, method: Any, folder: Path, scratch: Path) -> None:
    """A static method's tensors that differ from θ₀, in float32: θ₀'s own dtype may be too coarse for λτ.

    Where the method is linear, those of adapters are an adapter: no matrix is made. Otherwise the method sees all that merges, as
    thresholds over whole task vectors count what does not change too.
    """
    found, choices = layout_of(stages), []

    def merge(options: Any, place: Path) -> Mapping[str, Tensor]:
        _merge(stages, options, found, place, scratch)
        return changes_in(stages, place)

    if getattr(method, "grid", None):
        choices.append(merged_by_grid(stages, method, merge, folder, scratch))
    else:
        merge(method, folder)
    (folder / CHOICES).write_text(json.dumps(choices))


def _merge(stages: LanguageStages, method: Any, found: Layout, folder: Path, scratch: Path) -> None:
    if obstacle(method, found) is None:
        write_adapter(MergeOptions(base=stages.run.backbone.pretrained), method, found, folder)
        return
    parts = Parts(scratch / f"parts of {folder.name}")
    stack = Stack(found.base, found.experts, found.selected)
    names = parts.missing(found.changed)
    pieces = Pieces(parts, {name: stack.base[name] for name in names})
    load = merge_methods[method.name].load()
    merge_into(pieces.write, load, method, stack, seed=stages.run.seed, names=names, dtype=torch.float32)
    parts.join(folder / MERGED)


def basis(stages: LanguageStages, folder: Path, scratch: Path) -> None:
    """Singular vectors of every matrix's θ_t − θ_s, a file a parameter."""
    write_basis(_dense(stages, layout_of(stages)), stages.run.sparsifier, folder, scratch)


def exclusive(stages: LanguageStages, folder: Path, scratch: Path) -> None:
    """Compressed v_t of all tasks: of adapters under a linear method from their factors, else from dense matrices."""
    found, options = layout_of(stages), stages.run.sparsifier
    factors = factored_knowledge(MergeOptions(sparsifier=options), stages.method.shared, found)
    if factors is None:
        write_exclusive(
            _dense(stages, found), options, stages.run.seed, lambda: stages.get(stages.basis()).folder, folder, scratch
        )  # fmt: skip
        return
    parts = Parts(scratch / "parts")
    for name, kept in factors:
        parts.add(name, tensors_of(name, kept))
    parts.join(folder / "exclusive.safetensors")


def check_budget(stages: LanguageStages) -> None:
    """Raise a UserError if ``sparsifier.budget`` is too small for what is kept whole of models that are fine-tuned as a whole."""
    run = stages.run
    imported = any(source_of(run.experts, name) is not None for name in stages.names)
    if getattr(run.sparsifier, "budget", None) is None or run.finetune.name != "causal_full" or imported:
        return  # how much of the model an adapter or another's expert changes is not known before
    base = MappedCheckpoint(stages.backbone_source.folder)
    names = select(base, run.parameters.include, run.parameters.exclude)
    room(exclusive_knowledge(base, [base] * len(stages.names), names), run.sparsifier)


def _dense(stages: LanguageStages, found: Layout) -> Stack:
    """θ_t − θ_s of what some expert changes; of all else it is 0."""
    shared = ChainMap(cast(Any, shared_changes(stages)), cast(Any, found.base))
    return exclusive_knowledge(shared, found.experts, found.changed)


class Pieces:
    """Merged numbers as they come, in any order and from several threads; a tensor is written once it is whole.

    Args:
        parts: where whole ones go.
        like: what is awaited, by name, of these shapes.
    """

    def __init__(self, parts: Parts, like: Mapping[str, Tensor]):
        self._parts, self._like, self._lock = parts, like, Lock()
        self._open: dict[str, Tensor] = {}
        self._left = {name: tensor.numel() for name, tensor in like.items()}

    def write(self, name: str, start: int, piece: Tensor) -> None:
        """Take the numbers of a parameter from ``start`` on."""
        shape = self._like[name].shape
        with self._lock:
            tensor = self._open.setdefault(name, torch.empty(shape.numel()))
        tensor[start : start + len(piece)] = piece
        with self._lock:
            self._left[name] -= len(piece)
            whole = not self._left[name]
        if whole:
            self._parts.add(name, {name: self._open.pop(name).view(shape)})
