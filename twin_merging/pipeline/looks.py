"""What a job keeps of its answers for people to look at: confusions of classes, and example images with their weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from twin_merging.evaluation.classes import class_confusion, worth_a_look
from twin_merging.reporting.looks import CONFUSION_FILE, EXAMPLES_FILE, THUMBNAILS_FILE
from twin_merging.tasks.base import TEST, Task
from twin_merging.tasks.thumbnails import COLUMNS, SIDE, thumbnails

MOST, MOST_OF_TASK = 64, 8  # examples of a job, and of one of its tasks
WRONG = 3 / 8  # share of them that is kept for what went wrong


def save_looks(
    folder: Path, tasks: list[Task], answers: Mapping[str, list], weights: Mapping[str, Tensor] | None, names: list[str]
) -> None:
    """Write ``CONFUSION_FILE`` of the tasks that have classes and, where rows of images were routed, ``EXAMPLES_FILE`` and
    ``THUMBNAILS_FILE``.

    Args:
        answers: by task, the answer of each test row.
        weights: by task, w(x) of each test row, (rows, T); None without a router.
        names: the T tasks that the weights are of.
    """
    classified = [task for task in tasks if task.kind == "single_label"]
    confusions = {
        task.name: {
            "of": "texts" if task.images is None else "images",
            **class_confusion(task.class_names, task.splits[TEST].labels, answers[task.name]),  # type: ignore[arg-type]
        }
        for task in classified
    }
    if confusions:
        (folder / CONFUSION_FILE).write_text(json.dumps({"tasks": confusions}), encoding="utf-8")
    pictured = [task for task in classified if task.images is not None][:MOST]
    if weights is not None and pictured:
        _save_examples(folder, pictured, answers, weights, names)


def _save_examples(
    folder: Path, tasks: list[Task], answers: Mapping[str, list], weights: Mapping[str, Tensor], names: list[str]
) -> None:
    count = min(MOST // len(tasks), MOST_OF_TASK)
    wrong = int(WRONG * count)
    images: list[bytes] = []
    examples: list[dict[str, Any]] = []
    for task in tasks:
        split, top = task.splits[TEST], weights[task.name].argmax(-1).tolist()
        found = worth_a_look(
            [names[index] == task.name or task.name not in names for index in top],
            [answer == label for answer, label in zip(answers[task.name], split.labels, strict=True)],
            count - wrong,
            wrong,
        )
        for kind, rows in zip(("drawn", "wrong"), found, strict=True):
            for row in rows:
                (key,) = split.texts[row]
                examples.append(_example(task, row, answers[task.name][row], weights[task.name][row], names, kind))
                images.append(task.images[key])  # type: ignore[index]
    about = {"tasks": names, "side": SIDE, "columns": COLUMNS, "examples": examples}
    (folder / EXAMPLES_FILE).write_text(json.dumps(about), encoding="utf-8")
    thumbnails(images).save(folder / THUMBNAILS_FILE)


def _example(task: Task, row: int, answer: int, weights: Tensor, names: list[str], kind: str) -> dict[str, Any]:
    """One row, and how it came here: ``drawn`` whatever came of it, or because something is ``wrong``."""
    label = int(task.splits[TEST].labels[row])
    named = 0 <= answer < len(task.class_names)  # else the head of another task answered what is no class of this one
    return {
        "task": task.name, "row": row, "kind": kind, "class": task.class_names[label],
        "answer": task.class_names[answer] if named else None, "right": answer == label,
        "top_task": names[int(weights.argmax())], "weights": weights.tolist(),
    }  # fmt: skip
