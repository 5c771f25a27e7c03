"""From features to answers: whose head reads them, and what its answer means for the true task."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from twin_merging.backbones.features import Features
from twin_merging.evaluation.metrics import NO_ANSWER
from twin_merging.tasks.base import Task

Answer = Callable[[Features], Tensor]
"""A head: features in, logits (rows, num_labels) out."""


def oracle_answers(task: Task, features: Features, heads: Mapping[str, Answer]) -> list[int] | list[float]:
    """Answers of the true task's own head, as in all published numbers."""
    return _own(task, heads[task.name](features))


def routed_answers(task: Task, features: Features, heads: Mapping[str, Answer], top: Tensor, tasks: list[Task]) -> list:
    """Answers of the head of each row's top task, read as answers to the true task.

    A class counts by its name: another task's head is right where it names the class that the true task calls the same.
    What no class of the true task is called is ``NO_ANSWER``, which every metric counts as wrong. To a regression,
    another task's head has no answer; the middle of the label range stands for it.

    Args:
        top: the router's top task of each row, (rows,).
    """
    answers: list = [_no_answer(task)] * len(top)
    for index, routed in enumerate(tasks):
        rows = (top == index).nonzero().flatten().tolist()
        if not rows:
            continue
        given = _own(routed, heads[routed.name]({key: value[rows] for key, value in features.items()}))
        for row, answer in zip(rows, given, strict=True):
            answers[row] = answer if routed is task else _translated(answer, routed, task)
    return answers


def _own(task: Task, logits: Tensor) -> list[int] | list[float]:
    return logits.argmax(-1).tolist() if task.kind == "single_label" else torch.flatten(logits).tolist()


def _translated(answer: int | float, routed: Task, task: Task) -> int | float:
    if routed.class_names and task.class_names and (name := routed.class_names[int(answer)]) in task.class_names:
        return task.class_names.index(name)
    return _no_answer(task)


def _no_answer(task: Task) -> int | float:
    return NO_ANSWER if task.label_range is None else sum(task.label_range) / 2
