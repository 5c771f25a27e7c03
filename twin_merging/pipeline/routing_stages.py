"""The stages that w(x) comes from: what the router reads, and the router."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twin_merging.config import TfidfRouter, routers
from twin_merging.pipeline.stage import Stage, by
from twin_merging.tasks.base import TEST, TRAIN
from twin_merging.validation import to_plain

if TYPE_CHECKING:
    from twin_merging.pipeline.stages import Stages


def reads_tokens(stages: Stages) -> bool:
    """Whether the router reads token ids, for which no encoder runs."""
    return isinstance(stages.run.router, TfidfRouter)


def read(stages: Stages, split: str) -> tuple[Stage, ...]:
    """The shared encoder's features that the router reads of a split; none where it reads token ids.

    They are those of a whole pass if heads answer from it too, else of one that ends at the router's layer.
    """
    if reads_tokens(stages):
        return ()
    layer = getattr(stages.run.router, "layer", -1)
    is_answered = split == TEST and not stages.is_dynamic and not stages.is_ensemble
    if split != TRAIN and (layer < 0 or is_answered):
        return (stages.encoded_by_shared(split),)
    label = f"the {stages.shared.label} encoder" + (f", layer {layer}" if layer >= 0 else "")
    rows = stages.run.router.rows if split == TRAIN else None  # of which there may be hundreds of thousands
    names = stages.evaluated if split == TEST else stages.names
    return (stages.encoded(stages.shared, split, names, label, layer, for_router=True, rows=rows),)


def chosen(stages: Stages) -> Stage:
    """Features of test rows, each by the expert that the router chooses."""
    options = {"precision": stages.precision, **stages.reading}
    inputs = (stages.router, *read(stages, TEST), *stages.experts, *stages.references)
    load = by("ensemble", "chosen", stages)
    return Stage("chosen", "test rows by the expert routed to", options, inputs, load)


def router(stages: Stages) -> Stage:
    """A router trained on what it reads of validation rows, or of training rows."""
    options: dict[str, Any] = {
        "router": to_plain(stages.run.router), "code": routers[stages.run.router.name].code_hash(), "seed": stages.run.seed,
    }  # fmt: skip
    inputs = (*read(stages, stages.run.router.source), *map(stages.data, stages.names))
    if reads_tokens(stages):
        options |= stages.reading
        inputs = (stages.base, *inputs)  # whose tokenizer gives the ids
    return Stage("router", stages.run.router.name, options, inputs, by("compute", "router", stages), version=2)
