"""A twin in a folder: the shared expert, compressed exclusive knowledge, and how they become one model again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twin_merging.basis import Vectors, decompose
from twin_merging.config import Svd, sparsifiers
from twin_merging.dynamic.folder import BASE, EXCLUSIVE, RECORD, ROUTER, SHARED
from twin_merging.mapped import MappedCheckpoint
from twin_merging.merging.apply import modularize
from twin_merging.merging.twin import exclusive_knowledge
from twin_merging.parts import Parts
from twin_merging.sparsifiers.stored import tensors_of
from twin_merging.standalone.adapter_output import write_adapter
from twin_merging.standalone.adapter_twin import factored_knowledge
from twin_merging.standalone.adapters import Adapter
from twin_merging.standalone.layout import Layout
from twin_merging.standalone.options import MergeOptions
from twin_merging.standalone.sources import Source
from twin_merging.standalone.writing import write_model
from twin_merging.validation import to_plain

PARTS, BASIS = "exclusive.parts", "basis.parts"

USAGE = """```python
import torch
from twin_merging.dynamic.model import TwinMergedModel

model = TwinMergedModel.from_pretrained(FOLDER)  # this folder
weights = torch.tensor([{example}])  # w(x): a row an example, a column an expert: {names}
output = model(input_ids=INPUT_IDS, weights=weights)  # θ_s + Σ_t w_t(x) v_t for each row; without weights θ_s alone
```"""


def write_twin(
    options: MergeOptions, shared: Any, base: Source, experts: Sequence[Source], layout: Layout, folder: Path, adapter: bool
) -> list[str]:  # fmt: skip
    """Write the shared expert that ``shared`` merges, v_t = sparsify(θ_t − θ_s) of all experts, and what they are.

    Args:
        adapter: the shared expert is written as θ_s − θ₀, a LoRA adapter of the base.

    Returns:
        The weight files' names.
    """
    place = folder / SHARED
    place.mkdir(exist_ok=True)
    if adapter:
        written = write_adapter(options, shared, layout, place)
    else:
        written = write_model(options, shared, base, layout, place)
    files = [f"{SHARED}/{name}" for name in written]
    if not (folder / EXCLUSIVE).is_file():
        _write_exclusive(options, shared, layout, folder, adapter)
    if options.router is not None:
        shutil.copyfile(options.router, folder / ROUTER)
    record = {
        "experts": names_of(experts),
        **({BASE: _place_of(base)} if adapter else {}),
        "merge_method": to_plain(options.merge_method),
        "sparsifier": to_plain(options.sparsifier),
        "bytes": {
            SHARED: sum((folder / file).stat().st_size for file in files),
            EXCLUSIVE: (folder / EXCLUSIVE).stat().st_size,
        },
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False))
    return [*files, EXCLUSIVE]


def _place_of(source: Source) -> str:
    """Where a model is found again, from whichever folder: of a local one its full path, of the hub its commit."""
    if "folder" in source.origin:
        return str(source.folder.absolute())
    name, _, _ = source.given.partition("@")
    return f"{name}@{source.origin['commit']}" if "commit" in source.origin else source.given


def _write_exclusive(options: MergeOptions, shared: Any, layout: Layout, folder: Path, adapter: bool) -> None:
    """Compress one parameter after the other into a file of its own, then join these files."""
    parts, sparsifier = Parts(folder / PARTS), options.sparsifier

    def keep(name: str, kept: Any) -> None:
        parts.add(name, tensors_of(name, kept))

    factored = factored_knowledge(options, shared, layout)
    if factored is not None:
        for name, kept in factored:
            keep(name, kept)
    else:
        place = folder / SHARED
        merged = Adapter(layout.base, Source(SHARED, SHARED, place, {})) if adapter else MappedCheckpoint(place)
        knowledge = exclusive_knowledge(merged, layout.experts, layout.selected)
        statistics = None
        if isinstance(sparsifier, Svd) and sparsifier.budget is not None:
            decompose(knowledge, None, sparsifier.solver, Parts(folder / BASIS))
            statistics = Vectors(folder / BASIS, knowledge, sparsifier)
        modularize(
            keep, sparsifiers[sparsifier.name].load(), sparsifier, knowledge,
            seed=options.seed, statistics=statistics, names=parts.missing(knowledge.names),
        )  # fmt: skip
    parts.join(folder / EXCLUSIVE)
    shutil.rmtree(folder / BASIS, ignore_errors=True)


def usage_of(experts: Sequence[Source]) -> str:
    """The card's lines on how to load it."""
    row = [0.0] * len(experts)
    row[0] = 1.0
    return USAGE.format(example=row, names=", ".join(names_of(experts)))


def names_of(experts: Sequence[Source]) -> list[str]:
    """What each column of the weights belongs to."""
    return [
        str(source.origin.get("hub") or source.origin.get("asset") or source.origin["folder"]) for source in experts
    ]
