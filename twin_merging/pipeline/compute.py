"""What each stage computes: reads its inputs' artefacts, calls the pure code, writes files into its folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from twin_merging import checkpoints, parameters
from twin_merging.backbones.features import Features
from twin_merging.checkpoints import Checkpoint
from twin_merging.config import GroupWise, finetunings, inferences, merge_methods, routers
from twin_merging.dynamic.grouping import group_means
from twin_merging.dynamic.plan import explanation
from twin_merging.errors import unknown
from twin_merging.evaluation.heads import oracle_answers
from twin_merging.evaluation.metrics import metrics
from twin_merging.evaluation.scoring import average_normalized, normalized
from twin_merging.evaluation.selection import choose, refuse_test
from twin_merging.merging.apply import merge
from twin_merging.merging.method import kind_of
from twin_merging.pipeline import batchnorm
from twin_merging.pipeline.artefacts import (
    ENCODER,
    FEATURES,
    backbone_of,
    base_weights,
    encoder_with,
    evaluated_of,
    exclusive_of,
    expert_weights,
    heads_of,
    inputs_of,
    keeps,
    read_all,
    read_by_router,
    routing_weights,
    task_of,
    tasks_of,
    weights_at,
    with_own,
)
from twin_merging.pipeline.data_methods import choices_of, statistics_of
from twin_merging.pipeline.expert_stages import tuning_of
from twin_merging.pipeline.stage import Stage
from twin_merging.pipeline.stages import Stages
from twin_merging.tasks.base import TEST, VALIDATION, Task
from twin_merging.tasks.images import without_corrupt
from twin_merging.tasks.splits import prepare

log = logging.getLogger("twin_merging")

# --- data, base, experts ----------------------------------------------------------------------------------------------


def data(stages: Stages, name: str, folder: Path, scratch: Path) -> None:
    """Clean, split and sample a task, and decode each of its images once."""
    raw = stages.task_source.load(name)
    if raw.metric not in metrics:
        raise unknown(f"metric of task {name}", raw.metric, metrics, "metric")
    tasks = stages.run.tasks
    held_out = getattr(tasks, "held_out", None)
    task = prepare(raw, stages.rows(name), tasks.limit, tasks.split_seed, tasks.order, held_out)
    usable = without_corrupt(task, getattr(tasks, "corrupt", 0.0))
    before, left = (sum(map(len, each.splits.values())) for each in (task, usable))
    if left < before:
        log.warning("  %s: %d of %d images cannot be decoded and are left out", name, before - left, before)
    usable.save(folder)


def base(stages: Stages, folder: Path, scratch: Path) -> None:
    """θ₀ under the names that experts use."""
    backbone = backbone_of(stages)
    model = backbone.load(backbone.folder, num_labels=2, new_head=True)
    checkpoints.save(backbone.encoder(model).state_dict(), folder / ENCODER)
    (folder / "base.json").write_text(
        json.dumps({"prefix": model.base_model_prefix, "model_type": model.config.model_type})
    )


def expert(stages: Stages, name: str, folder: Path, scratch: Path) -> None:
    """Fine-tune on one task."""
    fine_tune = finetunings[stages.run.finetune.name].load()
    task = task_of(stages, name)
    refuse_test(f"epoch of {name}", [task], VALIDATION)
    options = tuning_of(stages.run.finetune, name)
    fine_tune(backbone_of(stages), task, options, stages.run.training_seed, folder, scratch)


# --- merging ----------------------------------------------------------------------------------------------------------


def merged(stages: Stages, method: Any, folder: Path, scratch: Path) -> None:
    """A static method's encoder; its λ chosen on validation where a grid is given."""
    choices = choices_of(stages, method)
    if getattr(method, "grid", None):
        choice = _chosen_from_grid(stages, method)
        choices.append(choice)
        method = replace(method, **{choice["what"]: choice["chosen"]})
    weights, seen = batchnorm.refreshed(stages, _merge(stages, method), method.name)
    checkpoints.save(weights, folder / ENCODER)
    (folder / "choices.json").write_text(json.dumps([*choices, *seen]))


def _merge(stages: Stages, method: Any) -> dict[str, Tensor]:
    start, experts = base_weights(stages), expert_weights(stages)
    selected = parameters.select(start, stages.run.parameters.include, stages.run.parameters.exclude)
    return merge(
        merge_methods[method.name].load(), method, start, experts, selected,
        seed=stages.run.seed, statistics=statistics_of(stages, method),
    )  # fmt: skip


def _chosen_from_grid(stages: Stages, method: Any) -> dict[str, Any]:
    """The λ with the best average on validation rows, each task's score normalized by its expert's there.

    A method may name another of its keys in ``grid_of``, which the grid chooses instead.
    """
    tasks, key = tasks_of(stages), getattr(method, "grid_of", "scaling")
    refuse_test(key, tasks, VALIDATION)
    references = [max(_own_validation(stages, index).values()) for index in range(len(tasks))]
    heads, backbone, scores = heads_of(stages), backbone_of(stages), {}
    rows_of = [inputs_of(stages, task, VALIDATION) for task in tasks]
    for value, weights in _candidates(stages, method, key):
        encoder, ratios = encoder_with(stages, weights), []
        if not stages.answers_with_own or not keeps(stages, weights):
            batchnorm.refresh(stages, encoder, tasks, f"{key} {value:g}")
        for index, (task, rows, reference) in enumerate(zip(tasks, rows_of, references, strict=True)):
            if stages.answers_with_own:
                batchnorm.take_own(stages, encoder, weights, index)
            features = backbone.encode(encoder, rows, stages.run.evaluation.batch_size, f"{key} {value:g}: {task.name}")
            ratios.append(
                normalized(
                    metrics[task.metric](oracle_answers(task, features, heads), task.splits[VALIDATION].labels),
                    reference,
                )
            )
        scores[value] = average_normalized(ratios) or 0.0
    return choose(key, scores, tasks, VALIDATION)


def _candidates(stages: Stages, method: Any, key: str) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """Each value of the grid and what it merges to; where that is linear in λ, by one merge for all."""
    if key != "scaling" or not kind_of(merge_methods[method.name].load()).linear:
        yield from ((value, _merge(stages, replace(method, **{key: value}))) for value in method.grid)
        return
    start, whole = base_weights(stages), _merge(stages, replace(method, scaling=1.0))
    for value in method.grid:
        yield (
            value,
            {name: start[name].lerp(end, value) if end.is_floating_point() else end for name, end in whole.items()},
        )


def _own_validation(stages: Stages, index: int) -> dict[str, float]:
    """An expert's validation score by epoch, or of its published weights."""
    record = stages.get(stages.experts[index]).json("expert.json")
    if "choice" in record:
        return record["choice"]["scores"]
    task, backbone = tasks_of(stages)[index], backbone_of(stages)
    encoder = encoder_with(stages, read_all(expert_weights(stages)[index]))
    features = backbone.encode(
        encoder, inputs_of(stages, task, VALIDATION), stages.run.evaluation.batch_size, f"{task.name} expert"
    )
    return {
        "published": metrics[task.metric](
            oracle_answers(task, features, heads_of(stages)), task.splits[VALIDATION].labels
        )
    }


# --- features, router, dynamic merging --------------------------------------------------------------------------------


def encoded(
    stages: Stages, encoder: Stage, split: str, names: list[str], label: str, layer: int, for_router: bool,
    rows: int | None, own: bool, folder: Path, scratch: Path,
) -> None:  # fmt: skip
    """Features of one split of some tasks: ``TASK.mean`` and, but where they are for the router alone, ``first`` and ``pooled``."""
    artefact, backbone = stages.get(encoder), backbone_of(stages)
    weights = read_all(
        weights_at(stages, artefact.path(ENCODER) if ENCODER in artefact.files else artefact.path(checkpoints.SINGLE))
    )
    model = encoder_with(stages, weights)
    tensors: dict[str, Tensor] = {}
    for name in names:
        if own:
            batchnorm.take_own(stages, model, weights, stages.names.index(name))
        inputs = inputs_of(stages, task_of(stages, name), split, rows)
        features = backbone.encode(
            model, inputs, stages.run.evaluation.batch_size, f"{label}: {name}", layer=layer, for_router=for_router
        )
        tensors |= {f"{name}.{key}": value for key, value in features.items()}
    checkpoints.save(tensors, folder / FEATURES)


def router(stages: Stages, folder: Path, scratch: Path) -> None:
    """Train the router on rows of ``router.source`` and record its accuracy on those held out."""
    tasks, split = tasks_of(stages), stages.run.router.source
    kind = routers[stages.run.router.name].load()
    trained, report = kind.fit(stages.run.router, read_by_router(stages, split, tasks), tasks, stages.run.seed)
    checkpoints.save(trained.state_dict(), folder / "router.safetensors")
    (folder / "router.json").write_text(json.dumps(report, indent=1))


def dynamic(stages: Stages, folder: Path, scratch: Path) -> None:
    """Features of test rows, each under its own merged weights."""
    tasks = evaluated_of(stages)
    features, dropped = dynamic_features(stages, tasks, routing_weights(stages, tasks), TEST)
    tensors = {f"{name}.{key}": value for name, mine in features.items() for key, value in mine.items()}
    checkpoints.save(tensors, folder / FEATURES)
    (folder / "dynamic.json").write_text(json.dumps({"dropped": dropped}))


def dynamic_features(
    stages: Stages, tasks: list[Task], weights: dict[str, Tensor], split: str, rows: list[int] | None = None
) -> tuple[dict[str, Features], float]:
    """Features of a split's rows by task, each row under its own merged weights, and the largest share that was dropped.

    Args:
        weights: w(x) of the rows by task, (rows, T).
        rows: how many of each task, the first; None for all.
    """
    backbone, build = backbone_of(stages), inferences[stages.run.inference.name].load()
    merged = read_all(Checkpoint(stages.get(stages.shared).path(ENCODER)))
    knowledge, model = exclusive_of(stages), None
    found: dict[str, Features] = {}
    dropped = 0.0
    if isinstance(stages.run.inference, GroupWise):
        weights = group_means(weights, stages.run.inference.groups, stages.run.seed)
    first = stages.run.router.layer if stages.run.inference.lower == "shared" else None
    for index, task in enumerate(tasks):
        if model is None or stages.answers_with_own:
            own = with_own(stages, merged, index) if stages.answers_with_own else merged
            model = build(encoder_with(stages, own), knowledge, stages.run.inference)
        inputs = inputs_of(stages, task, split, rows[index] if rows else None)
        label = f"{stages.method.name}: {task.name}"
        found[task.name] = backbone.encode(
            model, inputs, stages.run.inference.batch_size, label, weights[task.name], first_block=first
        )
        dropped = max(dropped, model.mixture.dropped)
        if stages.run.inference.explain:
            log.info("%s", explanation(model.plans()))
    return found, dropped
