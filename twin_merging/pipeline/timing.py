"""Seconds per 1000 items of a method, with its routing, beside a static encoder of the same architecture (paper Table 7).

This is a stage of its own: times are in no artefact that scores come from, so that these are the same in every run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from twin_merging.backbones.blocks import states_at
from twin_merging.backbones.encoders import Batch, Row
from twin_merging.backbones.features import router_input
from twin_merging.backbones.products import faster_products
from twin_merging.checkpoints import Checkpoint
from twin_merging.config import GroupWise, inferences
from twin_merging.dynamic.grouping import group
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.evaluation.timing import in_turns, waited_for
from twin_merging.measure import machine
from twin_merging.pipeline.artefacts import (
    ENCODER,
    backbone_of,
    base_weights,
    encoder_with,
    exclusive_of,
    read_all,
    tasks_of,
    trained_router,
)
from twin_merging.pipeline.environment import resolve_device
from twin_merging.pipeline.routing_stages import reads_tokens
from twin_merging.pipeline.stage import Stage, by
from twin_merging.pipeline.stages import Stages
from twin_merging.routers.oracle import one_hot
from twin_merging.tasks.base import TEST
from twin_merging.validation import to_plain

RECORD = "timing.json"


def stage(stages: Stages) -> Stage:
    """Static encoders take the same time whatever their weights, so that methods without routing share one artefact.

    Machines that share a cache do not share it.
    """
    run, inputs = stages.run, (stages.base, *map(stages.data, stages.names))
    options: dict[str, Any] = {
        "rows": run.evaluation.timing, "batch_size": batch_size(stages), "precision": stages.precision,
        **stages.reading, "machine": machine(str(resolve_device(run.device))), "way": _way(stages),
    }  # fmt: skip
    if stages.is_dynamic:
        options["inference"] = to_plain(run.inference)
        inputs = (*inputs, stages.shared, *stages.knowledge)
    if stages.trains_router:
        inputs = (*inputs, stages.router)
    label = f"{options['rows']} rows by {'one encoder' if options['way'] == 'static' else stages.label}"
    return Stage("timing", label, options, inputs, by("timing", "measure", stages))


def batch_size(stages: Stages) -> int:
    """Rows a forward pass."""
    return (stages.run.inference if stages.is_dynamic else stages.run.evaluation).batch_size


def measure(stages: Stages, folder: Path, scratch: Path) -> None:
    """Write ``machine``, ``rows``, ``tokens``, ``rounds``, ``seconds_per_1000``, ``static_seconds_per_1000`` and ``ratio``.

    Rows of all tasks are in one batch, as in a stream, sorted by length as everywhere; seconds are medians over rounds in
    which both ways take turns. Heads, and adapters of surgery, which are a few small products, are not counted.
    """
    backbone = backbone_of(stages)
    rows, lengths, tasks = _sample(stages)
    order = sorted(range(len(rows)), key=lambda row: -lengths[row])
    batches: list[Batch] = []
    truths: list[Tensor] = []
    for start in range(0, len(order), batch_size(stages)):
        chosen = order[start : start + batch_size(stages)]
        together = backbone.collate([rows[row] for row in chosen])
        batches.append({name: tensor.to(backbone.device) for name, tensor in together.items()})
        truths.append(torch.tensor([tasks[row] for row in chosen], device=backbone.device))
    static = encoder_with(stages, read_all(base_weights(stages))).to(backbone.device).eval()
    ways: dict[str, Callable[[], object]] = {"static": lambda: [static(**batch) for batch in batches]}
    if _way(stages) != "static":
        ways["method"] = _dynamic(stages, batches, truths) if stages.is_dynamic else _routed(stages, static, batches)
    autocast = torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.autocast)
    with torch.inference_mode(), autocast, faster_products(static, backbone.autocast, fixed=True):
        taken = in_turns({name: waited_for(way, backbone.device) for name, way in ways.items()})
    per_1000 = {name: 1000 * median(seconds) / len(rows) for name, seconds in taken.items()}
    method = per_1000.get("method", per_1000["static"])
    record = {
        "machine": machine(str(backbone.device)), "rows": len(rows), "tokens": sum(lengths), "batch_size": batch_size(stages),
        "rounds": len(taken["static"]), "seconds_per_1000": method, "static_seconds_per_1000": per_1000["static"],
        "ratio": method / per_1000["static"],
    }  # fmt: skip
    (folder / RECORD).write_text(json.dumps(record, indent=1))


def _way(stages: Stages) -> str:
    """``dynamic``; ``routed``, a static method whose heads are chosen by a router; or ``static``.

    Where the task of a row is known, an expert answers its own task's rows: the time of one static encoder.
    """
    if stages.is_dynamic:
        return "elected" if stages.is_elected else "dynamic"
    if not stages.trains_router:
        return "static"
    return "routed experts" if stages.is_ensemble else "routed"


def _sample(stages: Stages) -> tuple[list[Row], list[int], list[int]]:
    """Test rows of all tasks, drawn as one stream, their tokens, and which task each is of. Seeds of a job draw the same."""
    tasks = tasks_of(stages)
    places = [(task, row) for task, each in enumerate(tasks) for row in range(len(each.splits[TEST]))]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [places[place] for place in order[: stages.run.evaluation.timing]]
    rows: list[Row] = []
    lengths: list[int] = []
    owners: list[int] = []
    for index, task in enumerate(tasks):
        mine = [row for owner, row in chosen if owner == index]
        if mine:
            inputs = backbone_of(stages).inputs(task, TEST, mine)
            rows += inputs.rows
            lengths += inputs.lengths
            owners += [index] * len(mine)
    return rows, lengths, owners


def _dynamic(stages: Stages, batches: list[Batch], truths: list[Tensor]) -> Callable[[], object]:
    """Answer all batches under each row's own weights, routing included."""
    shared = encoder_with(stages, read_all(Checkpoint(stages.get(stages.shared).path(ENCODER))))
    router = trained_router(stages) if stages.trains_router else None
    options = stages.run.inference
    model: TwinMergedModel = inferences[options.name].load()(shared, exclusive_of(stages), options, router)
    model.to(backbone_of(stages).device).eval()
    own = torch.eye(len(stages.names), device=backbone_of(stages).device)
    if router is None:
        return lambda: [model(weights=own[truth], **batch) for batch, truth in zip(batches, truths, strict=True)]
    if isinstance(options, GroupWise):
        return lambda: _by_groups(model, batches, options.groups, stages.run.seed)
    if stages.is_elected:
        return lambda: [model(weights=one_hot(model.route(**batch)), **batch) for batch in batches]
    return lambda: [model.answer(**batch) for batch in batches]


def _by_groups(model: TwinMergedModel, batches: list[Batch], groups: int, seed: int) -> None:
    """Route all, cluster the weights, then answer."""
    weights = [model.route(**batch) for batch in batches]
    numbers, means = group(torch.cat(weights).cpu(), groups, seed)
    parts = means[numbers].to(weights[0]).split([len(each) for each in weights])
    for batch, part in zip(batches, parts, strict=True):
        model(weights=part, **batch)


def _routed(stages: Stages, static: nn.Module, batches: list[Batch]) -> Callable[[], object]:
    """Answer all batches by one encoder whose states the router reads, or by the expert of each row's top task.

    The encoder's weights do not matter to the time: ``static`` stands for the merged one, and for each expert.
    """
    router = trained_router(stages).to(backbone_of(stages).device)
    layer = int(getattr(router, "layer", -1))

    def one_pass(batch: Batch) -> None:
        if reads_tokens(stages):
            router.weights(batch["input_ids"], batch["attention_mask"])
            static(**batch)
            return
        output = static(**batch, output_hidden_states=True)
        router.weights(router_input(output.hidden_states[layer], batch.get("attention_mask"))["mean"])

    def by_expert(batch: Batch) -> None:
        if reads_tokens(stages):
            weights = router.weights(batch["input_ids"], batch["attention_mask"])
        else:
            states = states_at(static, layer, lambda **asked: static(**batch, **asked))
            weights = router.weights(router_input(states, batch.get("attention_mask"))["mean"])
        top = weights.argmax(-1)
        for expert in top.unique():
            mine = (top == expert).nonzero().flatten()
            static(**{name: value[mine] for name, value in batch.items()})

    answer = by_expert if _way(stages) == "routed experts" else one_pass
    return lambda: [answer(batch) for batch in batches]
