from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones.tiny_images import COLOURS, colour_task
from PIL import Image

from twin_merging.evaluation.metrics import NO_ANSWER
from twin_merging.pipeline.looks import MOST, MOST_OF_TASK, save_looks
from twin_merging.reporting.looks import CONFUSION_FILE, EXAMPLES_FILE, THUMBNAILS_FILE
from twin_merging.tasks.base import TEST, Task
from twin_merging.tasks.images import decode
from twin_merging.tasks.thumbnails import COLUMNS, SIDE


def saved(folder: Path, tasks: list[Task], experts: int, right: bool = True) -> dict[str, Any]:
    """The examples of tasks, the first of which are those of experts; weights are random, and a strange task's too."""
    generator = torch.Generator().manual_seed(0)
    weights = {task.name: torch.rand(24, experts, generator=generator).softmax(-1) for task in tasks}
    answers = {task.name: list(task.splits[TEST].labels) if right else [NO_ANSWER] * 24 for task in tasks}
    save_looks(folder, tasks, answers, weights, [task.name for task in tasks[:experts]])
    return json.loads((folder / EXAMPLES_FILE).read_text())


@pytest.mark.parametrize("count", [1, 2, 9, 33, 70])
def test_examples_are_bounded_and_each_task_has_some_while_there_is_room(count: int, tmp_path: Path):
    tasks = [replace(colour_task("a"), name=f"task {index}") for index in range(count)]
    examples = saved(tmp_path, tasks, count, right=False)["examples"]
    of_each = [sum(example["task"] == task.name for example in examples) for task in tasks]
    assert of_each == [min(MOST // min(count, MOST), MOST_OF_TASK)] * min(count, MOST) + [0] * (
        count - min(count, MOST)
    )
    assert len(examples) <= MOST


def test_the_picture_has_the_rows_that_the_examples_name(tmp_path: Path):
    tasks = [colour_task("a", seed=1), colour_task("b", seed=2)]
    examples = saved(tmp_path, tasks, 2)["examples"]
    with Image.open(tmp_path / THUMBNAILS_FILE) as picture:
        sheet = np.asarray(picture)
    for place, example in enumerate(examples):
        task = next(task for task in tasks if task.name == example["task"])
        (key,) = task.splits[TEST].texts[example["row"]]
        pixels = decode(task.images[key]).resize((SIDE, 80), Image.Resampling.NEAREST)  # of 24 x 20
        line, column = divmod(place, COLUMNS)
        square = sheet[line * SIDE : (line + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
        assert (square[8:88] == np.asarray(pixels)).all()
        assert example["class"] == example["answer"] == COLOURS[task.splits[TEST].labels[example["row"]]]


def test_no_route_of_an_unseen_task_is_wrong(tmp_path: Path):
    tasks = [colour_task("a", seed=1), colour_task("b", seed=2), colour_task("strange", seed=3)]
    examples = saved(tmp_path, tasks, 2)["examples"]
    kinds = {task.name: [each["kind"] for each in examples if each["task"] == task.name] for task in tasks}
    assert kinds == {"a": ["drawn"] * 5 + ["wrong"] * 3, "b": ["drawn"] * 5 + ["wrong"] * 3, "strange": ["drawn"] * 5}


def test_without_a_router_or_images_there_are_counts_alone(tmp_path: Path):
    task = colour_task("a")
    texts = replace(task, name="texts", images=None)
    numbers = replace(texts, name="numbers", kind="regression", class_names=(), label_range=(0, 2))
    answers = {name: list(task.splits[TEST].labels) for name in ("a", "texts", "numbers")}
    weights = {name: torch.ones(24, 1) for name in answers}
    save_looks(tmp_path, [texts, numbers], answers, weights, ["texts"])
    assert [path.name for path in tmp_path.iterdir()] == [CONFUSION_FILE]
    save_looks(tmp_path, [task, texts, numbers], answers, None, ["a", "texts", "numbers"])
    assert [path.name for path in tmp_path.iterdir()] == [CONFUSION_FILE]
    found = json.loads((tmp_path / CONFUSION_FILE).read_text())["tasks"]
    assert {name: record["of"] for name, record in found.items()} == {"a": "images", "texts": "texts"}
    assert found["a"]["matrix"] == np.diag([8, 8, 8]).tolist()


def test_regressions_alone_leave_nothing(tmp_path: Path):
    task = replace(colour_task("a"), kind="regression", class_names=(), label_range=(0, 2), images=None)
    save_looks(tmp_path, [task], {"a": [0.0] * 24}, {"a": torch.ones(24, 1)}, ["a"])
    assert not list(tmp_path.iterdir())
