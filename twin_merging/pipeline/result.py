"""The last stage: answers, scores, bytes, costs, routing, and every choice that led there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from twin_merging import checkpoints
from twin_merging.backbones.features import Features
from twin_merging.checkpoints import Checkpoint
from twin_merging.config import evaluations
from twin_merging.evaluation.heads import Answer, oracle_answers, routed_answers
from twin_merging.evaluation.scoring import REFERENCE, averages
from twin_merging.pipeline.artefacts import (
    ENCODER,
    FEATURES,
    evaluated_of,
    features_of,
    heads_of,
    routing_weights,
    tasks_of,
)
from twin_merging.pipeline.costs import BEFORE_MERGING, costs_of, spent
from twin_merging.pipeline.data_methods import answering_heads
from twin_merging.pipeline.graph import Graph
from twin_merging.pipeline.looks import save_looks
from twin_merging.pipeline.stage import Stage, upstream
from twin_merging.pipeline.stages import Stages
from twin_merging.pipeline.unseen import unseen_heads, unseen_references
from twin_merging.tasks.base import Task


def result(stages: Stages, folder: Path, scratch: Path) -> None:
    """The part of results.json that does not depend on when and where the job ran, and what it keeps to be looked at."""
    merged, heads, run = tasks_of(stages), heads_of(stages), stages.run
    tasks = evaluated_of(stages)
    unseen = tasks[len(merged) :]
    features = answered_features(stages, tasks, run.evaluation.heads)
    weights = routing_weights(stages, tasks) if stages.is_dynamic or run.evaluation.heads == "routed" else None
    strange = unseen_heads(stages)
    answering: dict[str, Answer] = {**answering_heads(stages, heads), **strange}
    references = unseen_references(stages, unseen)
    score, entries, given = evaluations[run.evaluation.name].load(), {}, {}
    for index, task in enumerate(tasks):
        if index < len(merged):
            references[task.name] = features_of(stages, stages.encoded_by_expert(index), [task])[task.name]
        reference = references.get(task.name)
        if run.evaluation.heads == "oracle":
            answers = oracle_answers(task, features[task.name], answering)
        else:
            assert weights is not None
            answers = routed_answers(task, features[task.name], answering, weights[task.name].argmax(-1), merged)
        given[task.name] = answers
        entries[task.name] = score(
            task, answers, None if reference is None else oracle_answers(task, reference, {**heads, **strange})
        )
        if task in unseen:
            entries[task.name]["unseen"] = run.evaluation.unseen_head
    costs = costs_of(stages)
    record = {
        **averages({task.name: entries[task.name] for task in merged}), "reference": REFERENCE, "tasks": entries,
        "choices": _choices(stages), "costs": costs,
        "bytes_stored": sum(part["bytes"] for part in costs["stored"].values()),
        "routing": None if weights is None else _routing(stages, tasks, weights),
        "data": {task.name: task.provenance for task in tasks}, "checkpoints": _checkpoint_hashes(stages),
        **spent_stages(stages, [*stages.answered(run.evaluation.heads), *stages.routing, *stages.learned]),
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(record, indent=1))
    save_looks(folder, tasks, given, weights, stages.names)


def answered_features(stages: Stages, tasks: list[Task], heads: str) -> dict[str, Features]:
    """The features of test rows that oracle or routed heads answer from, by task."""
    features: dict[str, Features] = {}
    for stage in stages.answered(heads):
        features |= features_of(
            stages, stage, [task for task in tasks if stage.name != "encode" or task.name in _names_in(stages, stage)]
        )
    return features


def _names_in(stages: Stages, stage: Stage) -> set[str]:
    return {name.rpartition(".")[0] for name in Checkpoint(stages.get(stage).path(FEATURES))}


def spent_stages(stages: Graph, parts: Iterable[Stage]) -> dict[str, Any]:
    """Seconds and peak memory of every stage when it was computed, and the sum of those of ``parts`` after the experts."""
    used = [stages.get(stage) for stage in upstream(stages.result)[:-1]]
    after = {stage.key for part in parts for stage in upstream(part) if stage.name not in BEFORE_MERGING}
    counted = [artefact for artefact in used if artefact.key in after]
    return {
        **spent(counted),
        "stages": [
            {
                "name": artefact.stage,
                "label": artefact.label,
                "seconds": artefact.seconds,
                "peak_memory": artefact.peak_memory,
                "key": artefact.key,
            }
            for artefact in used
        ],
    }


def _checkpoint_hashes(stages: Stages) -> dict[str, str]:
    """SHA-256 of θ₀ and of each expert's weights."""
    experts = {
        f"expert {stage.label}": stages.get(stage).files[checkpoints.SINGLE]["sha256"] for stage in stages.experts
    }
    return {"base": stages.get(stages.base).files[ENCODER]["sha256"], **experts}


def _choices(stages: Stages) -> list[dict[str, Any]]:
    """Every choice that went into the result, with the split and the scores it was made on."""
    choices = [
        record["choice"]
        for record in (stages.get(stage).json("expert.json") for stage in stages.experts)
        if "choice" in record
    ]
    if stages.shared.name == "merge":
        choices += stages.get(stages.shared).json("choices.json")
    choices += [stages.get(stage).json("choice.json") for stage in stages.learned]
    if stages.trains_router:
        choices += stages.get(stages.router).json("router.json")["choices"]
    return choices


def _routing(stages: Stages, tasks: list[Task], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    dropped = stages.get(stages.dynamic).json("dynamic.json")["dropped"] if stages.is_dynamic else None
    return routing_record(stages, stages.trains_router, {task.name: weights[task.name] for task in tasks}, dropped)


def routing_record(
    stages: Graph, is_trained: bool, weights: Mapping[str, Tensor], dropped: float | None
) -> dict[str, Any]:
    """How test rows were routed: true task × top expert counts, true task × expert mean weights.

    Args:
        is_trained: whether a router was trained.
        weights: w(x) of every evaluated task's rows, (rows, T).
        dropped: the largest share of the weights that was left out.
    """
    report = stages.get(stages.router).json("router.json") if is_trained else {}
    top = [weights[name].argmax(-1).bincount(minlength=len(stages.names)) for name in stages.names]
    right = sum(int(counts[index]) for index, counts in enumerate(top))
    found = {
        "router": stages.run.router.name, "trained_on": getattr(stages.run.router, "source", None), "task_names": stages.names,
        "accuracy": right / sum(int(counts.sum()) for counts in top),
        "holdout_accuracy": report.get("holdout_accuracy"), "temperature": report.get("temperature"),
        "train_rows": report.get("train_rows"), "confusion": [counts.tolist() for counts in top],
        "mean_weights": [weights[name].mean(0).tolist() for name in stages.names], "dropped": dropped,
    }  # fmt: skip
    if stages.unseen:  # which experts stand in for those that there are not
        found["unseen"] = {name: weights[name].mean(0).tolist() for name in stages.unseen}
    return found
