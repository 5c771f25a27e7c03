"""What a method costs: numbers and bytes that answering needs, tokens that it was trained on, seconds and memory to make it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from twin_merging.pipeline.artefacts import ENCODER, STATISTICS, inputs_of, task_of
from twin_merging.pipeline.cache import Artefact
from twin_merging.pipeline.data_methods import size_of_heads
from twin_merging.pipeline.graph import Graph
from twin_merging.pipeline.routing_stages import reads_tokens
from twin_merging.pipeline.stage import Stage, upstream
from twin_merging.pipeline.stages import Stages
from twin_merging.pipeline.token_stages import counted
from twin_merging.routers.holdout import held_out
from twin_merging.safetensors_format import read_header

BEFORE_MERGING = ("data", "base", "expert")
LENGTHS = "lengths.json"
PARTS = ("encoder", "exclusive", "router", "heads")


def costs_of(stages: Stages) -> dict[str, Any]:
    """``stored`` and ``training_tokens``, which are the same in every run, and ``making``: seconds and peak memory of what
    comes after the experts, without evaluation."""
    return {
        "stored": stored(stages),
        "training_tokens": training_tokens(stages),
        "making": making(stages, _made(stages)),
    }


def stored(stages: Stages) -> dict[str, dict[str, int]]:
    """``parameters`` and ``bytes`` on disk of each of ``PARTS``; 0 for a part that answering does not need.

    The encoder is that of a static method, the shared one of a dynamic method, and all T of fine-tuned experts, where these
    are routed to with θ₀, whose states the router reads. Parameters are floating-point numbers; masks, bitmaps and indices
    count as bytes alone.
    """
    encoders = 1
    if stages.is_ensemble:
        encoders = len(stages.names) + (stages.trains_router and not reads_tokens(stages))
    found = {part: (0, 0) for part in PARTS}
    parameters, size = size_of(stages.get(stages.base), ENCODER)
    found["encoder"] = (parameters * encoders, size * encoders)
    if stages.is_dynamic:
        files = zip(stages.knowledge, ("exclusive.safetensors", STATISTICS), strict=False)
        sizes = [size_of(stages.get(stage), name) for stage, name in files]
        found["exclusive"] = (sum(numbers for numbers, _ in sizes), sum(size for _, size in sizes))
    if stages.trains_router:
        found["router"] = size_of(stages.get(stages.router), "router.safetensors")
    found["heads"] = size_of_heads(stages)
    return {part: {"parameters": parameters, "bytes": size} for part, (parameters, size) in found.items()}


def training_tokens(stages: Stages) -> dict[str, int | None]:
    """Real tokens, without padding, that went through an encoder to train each part (paper Table 7).

    ``experts``: rows × epochs of all fine-tunings; None where one is imported. ``multitask``: the same of joint training.
    ``router``: its training rows once, as its epochs pass over states that are kept; 0 for one that no encoder runs for.
    ``learned``: what AdaMerging (steps × batch × tasks, by the mean length of the rows), and Surgery, Fisher merging and
    RegMean (rows once) see. ``after_experts``: what the method adds to its experts; of joint training, which has none, its own.
    """
    by_expert = [stages.get(stage).json("expert.json").get("train_tokens") for stage in stages.experts]
    experts = None if None in by_expert else sum(by_expert)
    given = {what: [_lengths_at(stages, stage) for stage in each] for what, each in counted(stages).items()}
    joint, options = 0, stages.run.router
    if stages.is_joint:  # the union of the experts' rows, for as many epochs
        joint = stages.run.finetune.epochs * _sum(given["multitask"]) if experts is None else experts
    router = _sum(rows[held_out(len(rows), None, options.holdout) :] for rows in given["router"])
    learned = _sum(given["statistics"]) + _sum(given["adapters"])
    if given["coefficients"]:
        method = stages.static_method
        learned += round(method.steps * method.batch_size * sum(map(fmean, given["coefficients"])))
    return {
        "experts": experts, "multitask": joint, "router": router, "learned": learned,
        "after_experts": joint + router + learned,
    }  # fmt: skip


def lengths(stages: Stages, name: str, split: str, rows: int | None, folder: Path, scratch: Path) -> None:
    """Tokens of each of a task's first rows."""
    (folder / LENGTHS).write_text(json.dumps(inputs_of(stages, task_of(stages, name), split, rows).lengths))


def _lengths_at(stages: Stages, stage: Stage) -> list[int]:
    return stages.get(stage).json(LENGTHS)


def _sum(tasks: Iterable[list[int]]) -> int:
    return sum(map(sum, tasks))


def _made(stages: Stages) -> list[Stage]:
    made: list[Stage] = [stages.shared, *stages.learned]
    made += [*stages.knowledge] if stages.is_dynamic else []
    return made + ([stages.router] if stages.trains_router else [])


def making(stages: Graph, made: Iterable[Stage]) -> dict[str, float]:
    """Seconds and peak memory of some stages and what they depend on after the experts."""
    keys = {stage.key: stage for part in made for stage in upstream(part) if stage.name not in BEFORE_MERGING}
    return spent(stages.get(stage) for stage in keys.values())


def spent(artefacts: Iterable[Artefact]) -> dict[str, float]:
    """``seconds``, in all, and ``peak_memory``, the largest, of computing some artefacts; 0 of none."""
    each = list(artefacts)
    return {
        "seconds": sum(artefact.seconds for artefact in each),
        "peak_memory": max((artefact.peak_memory for artefact in each), default=0),
    }


def size_of(artefact: Artefact, name: str) -> tuple[int, int]:
    """The floating-point numbers and the bytes of one of its safetensors files."""
    entries, _, _ = read_header(artefact.path(name))
    return sum(entry.numel for entry in entries.values() if entry.dtype.is_floating_point), artefact.bytes(name)
