"""The experts as they are, one of which the router chooses for each row: what ``finetuned`` is where the task is unknown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from twin_merging import checkpoints
from twin_merging.backbones.features import Features
from twin_merging.pipeline.artefacts import (
    FEATURES,
    backbone_of,
    encoder_with,
    expert_weights,
    features_of,
    read_all,
    router_weights,
    tasks_of,
)
from twin_merging.pipeline.stages import Stages
from twin_merging.tasks.base import TEST, Task


def chosen(stages: Stages, folder: Path, scratch: Path) -> None:
    """Features of test rows, each by the expert of its top task: ``TASK.KEY``."""
    tasks = tasks_of(stages)
    features = chosen_features(stages, tasks, router_weights(stages, tasks), TEST)
    tensors = {f"{name}.{key}": value for name, mine in features.items() for key, value in mine.items()}
    checkpoints.save(tensors, folder / FEATURES)


def chosen_features(
    stages: Stages, tasks: list[Task], weights: Mapping[str, Tensor], split: str
) -> dict[str, Features]:
    """Features of a split's first rows by task, each by the expert of its top task.

    A row that is sent to its own task has those that the normalized score refers to, so that experts run for wrong routes alone.

    Args:
        weights: w(x) of the rows by task, (rows, T).
    """
    found: dict[str, Features] = {}
    sent: list[list[tuple[Task, Tensor]]] = [[] for _ in tasks]
    for own, task in enumerate(tasks):
        top = weights[task.name].argmax(-1)
        reference = features_of(stages, stages.encoded_by_expert(own, split), [task])[task.name]
        found[task.name] = {key: value[: len(top)] for key, value in reference.items()}
        for index in set(top.tolist()) - {own}:
            sent[index].append((task, (top == index).nonzero().flatten()))
    for index, expert in enumerate(expert_weights(stages)):
        if sent[index]:
            _answer(stages, read_all(expert), sent[index], split, f"the {tasks[index].name} expert", found)
    return found


def _answer(
    stages: Stages, expert: dict[str, Tensor], sent: list[tuple[Task, Tensor]], split: str, label: str,
    found: dict[str, Features],
) -> None:  # fmt: skip
    """Put an expert's features of the rows that were sent to it where theirs are."""
    backbone, encoder = backbone_of(stages), encoder_with(stages, expert)
    for task, rows in sent:
        inputs = backbone.inputs(task, split, rows.tolist())
        features = backbone.encode(encoder, inputs, stages.run.evaluation.batch_size, f"{label}: {task.name}")
        for key, value in features.items():
            found[task.name][key] = found[task.name][key].index_copy(0, rows, value)
