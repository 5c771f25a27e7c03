"""A job's score on validation rows, by which a sweeper may choose among jobs. It is computed for nobody else.

The rows are those that the job's router did not learn from: the share of each task that ``router.holdout`` keeps, whether
the job routes or not, so that jobs are compared on equal rows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from twin_merging.backbones.features import Features
from twin_merging.config import inferences, routers
from twin_merging.evaluation.heads import oracle_answers, routed_answers
from twin_merging.evaluation.metrics import metrics
from twin_merging.evaluation.scoring import average_normalized, normalized
from twin_merging.evaluation.selection import refuse_test
from twin_merging.pipeline import routing_stages
from twin_merging.pipeline.artefacts import features_of, heads_of, read_by_router, tasks_of, trained_router, weights_by
from twin_merging.pipeline.compute import dynamic_features
from twin_merging.pipeline.data_methods import answering_heads
from twin_merging.pipeline.ensemble import chosen_features
from twin_merging.pipeline.stage import Stage, by, determining
from twin_merging.pipeline.stages import Stages
from twin_merging.routers.holdout import held_out
from twin_merging.routers.oracle import one_hot, oracle_weights
from twin_merging.tasks.base import VALIDATION, Task
from twin_merging.validation import to_plain

RECORD = "validated.json"


def stage(stages: Stages) -> Stage:
    """The stage of this score; nothing of it reads a test row."""
    run = stages.run
    options: dict[str, Any] = {
        "method": to_plain(stages.method), "router": to_plain(run.router), "router code": routers[run.router.name].code_hash(),
        "heads": run.evaluation.heads, "excluded": run.evaluation.excluded, "parameters": to_plain(run.parameters),
        "precision": stages.precision, **stages.reading, "seed": run.seed,
    }  # fmt: skip
    answered = [] if stages.is_ensemble else [stages.encoded_by_shared(VALIDATION, stages.answers_with_own)]
    if stages.is_dynamic:
        options |= {"inference": determining(run.inference), "code": inferences[run.inference.name].code_hash()}
        answered = [stages.shared, *stages.knowledge]
    routing = (stages.router, *routing_stages.read(stages, VALIDATION)) if stages.trains_router else ()
    references = [stages.encoded_by_expert(index, VALIDATION) for index in range(len(stages.names))]
    inputs = (*stages.experts, *references, *answered, *routing, *stages.learned)
    return Stage(
        "validate", f"{stages.label}: validation rows", options, inputs, by("validated", "validated", stages), version=2
    )


def validated(stages: Stages, folder: Path, scratch: Path) -> None:
    """What results.json says under ``validation``."""
    tasks, run = tasks_of(stages), stages.run
    refuse_test("the best job of a sweep", tasks, VALIDATION)
    rows = [_held_out(run.router, len(task.splits[VALIDATION])) for task in tasks]
    weights = _weights(stages, tasks, rows)
    features = _features(stages, tasks, rows, weights)
    own = heads_of(stages)
    heads, entries = answering_heads(stages, own), {}
    for index, (task, count) in enumerate(zip(tasks, rows, strict=True)):
        reference = features_of(stages, stages.encoded_by_expert(index, VALIDATION), [task])[task.name]
        if run.evaluation.heads == "oracle":
            answers = oracle_answers(task, features[task.name], heads)
        else:
            answers = routed_answers(task, features[task.name], heads, weights[task.name].argmax(-1), tasks)
        metric, labels = metrics[task.metric], task.splits[VALIDATION].labels[:count]
        raw, best = metric(answers, labels), metric(oracle_answers(task, _first(reference, count), own), labels)
        entries[task.name] = {"raw": raw, "reference": best, "normalized": normalized(raw, best), "rows": count}
    record = {
        "average_normalized": average_normalized([entry["normalized"] for entry in entries.values()]), "split": VALIDATION,
        "rows": sum(rows), "fingerprints": {task.name: task.fingerprint(VALIDATION) for task in tasks}, "tasks": entries,
    }  # fmt: skip
    (folder / RECORD).write_text(json.dumps(record, indent=1))


def _held_out(router: Any, rows: int) -> int:
    """How many of a task's first validation rows no router learns from; all where none learns from validation rows."""
    if not hasattr(router, "holdout") or router.source != VALIDATION:
        return rows
    return held_out(rows, router.rows, router.holdout)


def _weights(stages: Stages, tasks: list[Task], rows: list[int]) -> dict[str, Tensor]:
    """w(x) of the rows, by task: (rows, T)."""
    if not stages.trains_router:
        return {
            task.name: oracle_weights(index, count, len(tasks))
            for index, (task, count) in enumerate(zip(tasks, rows, strict=True))
        }
    router, given = trained_router(stages), read_by_router(stages, VALIDATION, tasks)
    weights = {
        task.name: weights_by(router, stages, read[:count])
        for task, read, count in zip(tasks, given, rows, strict=True)
    }
    return {name: one_hot(w) for name, w in weights.items()} if stages.is_elected else weights


def _features(stages: Stages, tasks: list[Task], rows: list[int], weights: dict[str, Tensor]) -> dict[str, Features]:
    if stages.is_dynamic:
        return dynamic_features(stages, tasks, weights, VALIDATION, rows)[0]
    if stages.is_ensemble:
        return chosen_features(stages, tasks, weights, VALIDATION)
    found = features_of(stages, stages.encoded_by_shared(VALIDATION, stages.answers_with_own), tasks)
    return {task.name: _first(found[task.name], count) for task, count in zip(tasks, rows, strict=True)}


def _first(features: Features, count: int) -> Features:
    return {key: value[:count] for key, value in features.items()}
