"""``evaluation=task_unknown``: one stream of all tasks' test rows, from what is cached of them; no encoder runs for it.

Merging anew for each row is exact whatever the batch, so that a row of the stream has the features that it has among its
own task's rows.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twin_merging.backbones.features import Features
from twin_merging.config import routers
from twin_merging.evaluation.calibration import calibration
from twin_merging.evaluation.heads import Answer, oracle_answers, routed_answers
from twin_merging.evaluation.routes import confusion, cost_of_wrong_routes
from twin_merging.evaluation.scoring import average_normalized, normalized
from twin_merging.pipeline import routing_stages
from twin_merging.pipeline.artefacts import (
    features_of,
    heads_of,
    read_by_router,
    router_weights,
    tasks_of,
    weights_by,
)
from twin_merging.pipeline.data_methods import answering_heads
from twin_merging.pipeline.result import answered_features
from twin_merging.pipeline.stage import Stage, by
from twin_merging.pipeline.stages import Stages
from twin_merging.routers.robustness import confidence_of, with_new_domain, with_noise
from twin_merging.tasks.base import TEST, Task
from twin_merging.validation import to_plain

RECORD, STREAM = "task_unknown.json", "stream.csv"


def stage(stages: Stages) -> Stage:
    """The stage of this evaluation, which oracle and routed heads of a method share."""
    options = {
        "method": to_plain(stages.method), "router": to_plain(stages.run.router), "code": routers[stages.run.router.name].code_hash(),
        "noise": stages.run.evaluation.noise, "new_domain": stages.run.evaluation.new_domain, "seed": stages.run.seed,
    }  # fmt: skip
    reads = [part for split in (stages.run.router.source, TEST) for part in routing_stages.read(stages, split)]
    inputs = (
        *stages.experts, *stages.references, *stages.answered("routed"), stages.router, *reads, *stages.learned,
    )  # fmt: skip
    return Stage(
        "unknown", f"{stages.label}: one stream", options, inputs, by("task_unknown", "unknown", stages), version=2
    )


def unknown(stages: Stages, folder: Path, scratch: Path) -> None:
    """What results.json says under ``task_unknown``, and the stream row by row."""
    tasks, run = tasks_of(stages), stages.run
    weights, features = router_weights(stages, tasks), answered_features(stages, tasks, "routed")
    heads = answering_heads(stages, heads_of(stages))
    top = {name: given.argmax(-1) for name, given in weights.items()}
    answers = _answers(stages, tasks, features, heads, top)
    confidence = {task.name: _confidence(features[task.name], top[task.name], tasks, heads) for task in tasks}
    rows, order = _rows(tasks, weights, answers, confidence), _order(tasks, run.seed)
    names, mixed = [task.name for task in tasks], stages.is_dynamic or stages.is_ensemble
    costs = {
        task.name: cost_of_wrong_routes(task, (top[task.name] == index).tolist(), answers[task.name], mixed)
        for index, task in enumerate(tasks)
    }
    probabilities, hits = confidence_of([weights[name] for name in names])
    record = {
        "stream": {"rows": len(order), "seed": run.seed, "task_names": names},
        "router": {**confusion([top[name] for name in names], len(tasks)), "calibration": calibration(probabilities, hits)},
        "answers": _answers_calibration([rows[place] for place in order]),
        "cost": {"average_normalized": _averages(costs), "tasks": costs},
        **_robustness(stages, tasks),
    }  # fmt: skip
    (folder / RECORD).write_text(json.dumps(record, indent=1))
    with (folder / STREAM).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[place] for place in order)


def _answers(
    stages: Stages, tasks: list[Task], features: Mapping[str, Features], heads: Mapping[str, Answer],
    top: Mapping[str, Tensor],
) -> dict[str, dict[str, list]]:  # fmt: skip
    """Task -> who of ``evaluation.routes.ANSWERS`` -> an answer a row."""
    own, found = heads_of(stages), {}
    for index, task in enumerate(tasks):
        reference = features_of(stages, stages.encoded_by_expert(index), [task])[task.name]
        found[task.name] = {
            "expert": oracle_answers(task, reference, own),
            "oracle": oracle_answers(task, features[task.name], heads),
            "routed": routed_answers(task, features[task.name], heads, top[task.name], tasks),
        }
    return found


def _confidence(features: Features, top: Tensor, tasks: list[Task], heads: Mapping[str, Answer]) -> list[float | None]:
    """The probability that the head of a row's top task gives its answer; None where that head is a regression's."""
    found: list[float | None] = [None] * len(top)
    for index, task in enumerate(tasks):
        rows = (top == index).nonzero().flatten().tolist()
        if rows and task.kind == "single_label":
            logits = heads[task.name]({key: value[rows] for key, value in features.items()})
            for row, value in zip(rows, logits.double().softmax(-1).amax(-1).tolist(), strict=True):
                found[row] = value
    return found


def _rows(
    tasks: list[Task], weights: Mapping[str, Tensor], answers: Mapping[str, Any], confidence: Mapping[str, list]
) -> list[dict[str, Any]]:
    """A mapping for each test row, one task's after the other's; ``right`` is None of a regression's rows."""
    rows = []
    for task in tasks:
        top, labels = weights[task.name].argmax(-1).tolist(), task.splits[TEST].labels
        certainty = weights[task.name].amax(-1).double().tolist()
        for row, label in enumerate(labels):
            answer = answers[task.name]["routed"][row]
            rows.append(
                {
                    "task": task.name, "row": row, "top_task": tasks[top[row]].name, "weight": certainty[row], "answer": answer,
                    "confidence": confidence[task.name][row], "label": label,
                    "right": answer == label if task.kind == "single_label" else None,
                    "right_by_own_head": answers[task.name]["oracle"][row] == label if task.kind == "single_label" else None,
                }
            )  # fmt: skip
    return rows


def _order(tasks: list[Task], seed: int) -> list[int]:
    count = sum(len(task.splits[TEST]) for task in tasks)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def _answers_calibration(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of classification rows that a classification head answered: is the head's probability that of being right?

    ``head`` takes it alone; ``head_and_router`` times max_t w_t(x), since the answer of a wrong head is rarely right.
    """
    known = [row for row in rows if row["confidence"] is not None and row["right"] is not None]
    right = [row["right"] for row in known]
    return {
        "head": calibration([row["confidence"] for row in known], right),
        "head_and_router": calibration([row["confidence"] * row["weight"] for row in known], right),
    }


def _averages(costs: Mapping[str, Any]) -> dict[str, float | None]:
    """The average normalized score of each way to answer, over tasks."""
    return {
        who: average_normalized([normalized(cost["score"][who], cost["score"]["expert"]) for cost in costs.values()])
        for who in ("oracle", "routed", "rescued")
    }


def _robustness(stages: Stages, tasks: list[Task]) -> dict[str, Any]:
    run, names = stages.run, [task.name for task in tasks]
    kind = routers[run.router.name].load()

    def fit(rows: list[Any], indices: list[int]) -> Callable[[Any], Tensor]:
        router, _ = kind.fit(run.router, rows, [tasks[index] for index in indices], run.seed)
        router.eval()
        return lambda given: weights_by(router, stages, given)

    train, test = (read_by_router(stages, split, tasks) for split in (run.router.source, TEST))
    train = [rows[: run.router.rows] for rows in train] if hasattr(run.router, "rows") else train
    shares = list(run.evaluation.noise)
    return {
        "noise": with_noise(fit, train, test, names, shares, run.seed),
        "new_domain": with_new_domain(fit, train, test, names) if run.evaluation.new_domain else None,
    }
