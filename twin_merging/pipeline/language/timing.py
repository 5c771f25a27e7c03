"""How long answers take (paper Tables 7 and 10), beside θ₀'s own, measured in turns on the same prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from twin_merging.config import GroupWise
from twin_merging.dynamic.grouping import group_means
from twin_merging.evaluation.timing import in_turns, waited_for
from twin_merging.measure import machine
from twin_merging.pipeline.environment import resolve_device
from twin_merging.pipeline.language.answers import twin_of
from twin_merging.pipeline.language.read import answering_size, backbone_of, exams_of
from twin_merging.pipeline.language.routing import trained_router
from twin_merging.pipeline.stage import Stage, by
from twin_merging.routers.oracle import oracle_weights
from twin_merging.tasks.generation import Request
from twin_merging.validation import to_plain

if TYPE_CHECKING:
    from twin_merging.pipeline.language.stages import LanguageStages

RECORD = "timing.json"
ALL = "all"


def stage(stages: LanguageStages) -> Stage:
    """One artefact for all models that answer by themselves: their weights do not matter to the time. Machines share none."""
    run, inputs = stages.run, (stages.base, *map(stages.exam, stages.evaluated))
    options: dict[str, Any] = {
        "rows": run.evaluation.timing, "batch_size": answering_size(stages), "precision": stages.precision,
        "dtype": run.backbone.dtype, "context": run.backbone.context, "machine": machine(str(resolve_device(run.device))),
    }  # fmt: skip
    if stages.is_twin:
        options |= {"inference": to_plain(run.inference), "router": run.router.name}
        inputs = (*inputs, stages.shared, stages.exclusive, *([stages.router] if stages.trains_router else []))
    label = f"{options['rows']} prompts by {stages.label if stages.is_twin else 'one model'}"
    return Stage("timing", label, options, inputs, by("language.timing", "measure", stages))


def measure(stages: LanguageStages, folder: Path, scratch: Path) -> None:
    """Write ``machine``, ``rows``, ``tokens``, ``rounds``, ``seconds_per_1000``, ``static_seconds_per_1000`` and ``ratio``.

    Prompts of all tasks are in one stream. Each gets as many new tokens as its task allows, whatever they are, so that two
    models do the same work; routing is part of the time. Seconds are medians over rounds in which both ways take turns.
    """
    backbone, size = backbone_of(stages), answering_size(stages)
    requests, tasks = _sample(stages)
    static = backbone.load()

    def answer(model: Any, weights: Tensor | None = None) -> None:
        backbone.complete(model, requests, size, "timed answers", weights, ends=())

    ways: dict[str, Callable[[], object]] = {"static": lambda: answer(static)}
    if stages.is_twin:
        model = twin_of(stages)
        ways["twin"] = lambda: answer(model, _routed(stages, model, requests, tasks))
    taken = in_turns({name: waited_for(way, backbone.device) for name, way in ways.items()})
    per_1000 = {name: 1000 * median(seconds) / len(requests) for name, seconds in taken.items()}
    own = per_1000.get("twin", per_1000["static"])
    prompts = backbone.tokenize([request.prompt for request in requests])
    record = {
        "machine": machine(str(backbone.device)), "rows": len(requests), "tokens": sum(map(len, prompts)),
        "new_tokens": sum(request.max_new_tokens for request in requests), "batch_size": size, "rounds": len(taken["static"]),
        "seconds_per_1000": own, "static_seconds_per_1000": per_1000["static"], "ratio": own / per_1000["static"],
    }  # fmt: skip
    (folder / RECORD).write_text(json.dumps(record, indent=1))


def _sample(stages: LanguageStages) -> tuple[list[Request], list[int]]:
    """Prompts of all exams, drawn as one stream, and which task each is of. Seeds of a job draw the same."""
    asked = [
        (replace(request, stop=(), temperature=0.0), task)
        for task, name in enumerate(stages.evaluated)
        for exam in exams_of(stages, name)
        for request in exam.requests
    ]
    order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [asked[place] for place in sorted(order[: stages.run.evaluation.timing])]
    return [request for request, _ in chosen], [task for _, task in chosen]


def _routed(stages: LanguageStages, model: Any, requests: list[Request], tasks: list[int]) -> Tensor:
    """w(x) of the prompts, (rows, T), found as for their scores."""
    run = stages.run
    if stages.trains_router:
        router, size = trained_router(stages), answering_size(stages)
        read = backbone_of(stages).states(model, requests, size, "timed prompts", run.router.layer, run.router.token)
        weights = router.weights(read)
    else:
        weights = torch.cat([oracle_weights(task, 1, len(stages.names)) for task in tasks])
    if isinstance(run.inference, GroupWise):
        weights = group_means({ALL: weights}, run.inference.groups, run.seed)[ALL]
    return weights
