"""Pictures of one job's answers, from the files that it left."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from synthetic import is_drawn, make_result

from twin_merging.evaluation.classes import class_confusion
from twin_merging.reporting.class_figures import NONE, cut
from twin_merging.reporting.example_figures import LETTERS
from twin_merging.reporting.looks import CONFUSION_FILE, EXAMPLES_FILE, THUMBNAILS_FILE, draw_looks
from twin_merging.reporting.report import print_report, report
from twin_merging.reporting.results import write
from twin_merging.reporting.tables import OFFLINE_WARNING

SIDE = 12
TASKS = ["digits", "things"]


def save_confusion(job: Path, of: str = "images", **classes: int) -> dict[str, Any]:
    """Answers of tasks by name with so many classes, of which some are wrong and some are no class."""
    chance, tasks = np.random.default_rng(0), {}
    for name, count in classes.items():
        labels = chance.integers(0, count, 40 * count)
        answers = np.where(chance.random(len(labels)) < 0.8, labels, chance.integers(-1, count, len(labels)))
        names = [f"{name} class {index}" for index in range(count)]
        tasks[name] = {"of": of, **class_confusion(names, labels.tolist(), answers.tolist())}
    (job / CONFUSION_FILE).write_text(json.dumps({"tasks": tasks}))
    return tasks


def save_examples(
    job: Path, tasks: list[str], experts: list[str] | None = None, count: int = 8, wrong: int = 3
) -> list[dict[str, Any]]:
    """``count`` examples a task, of which the last are those that went ``wrong``."""
    names, examples = experts or tasks, []
    for place, task in enumerate(tasks):
        for row in range(count):
            lost = row >= count - wrong
            weights = [0.0] * len(names)
            weights[(place + lost) % len(names)] = 0.75
            weights[(place + lost + 1) % len(names)] += 0.25
            examples.append(
                {
                    "task": task, "row": row, "kind": "wrong" if lost else "drawn", "class": f"{task} class {row}",
                    "answer": None if lost and row == count - 1 else f"{task} class {row + lost}", "right": not lost,
                    "top_task": names[(place + lost) % len(names)], "weights": weights,
                }
            )  # fmt: skip
    about = {"tasks": names, "side": SIDE, "columns": 8, "examples": examples}
    (job / EXAMPLES_FILE).write_text(json.dumps(about))
    lines = -(-len(examples) // 8)
    pixels = np.random.default_rng(0).integers(0, 255, (lines * SIDE, 8 * SIDE, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(job / THUMBNAILS_FILE)
    return examples


def words_of(svg: Path) -> list[str]:
    return [found.strip() for found in re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text())]


def test_a_few_classes_have_their_matrix(tmp_path: Path):
    record = save_confusion(tmp_path, digits=10)["digits"]
    png, svg = draw_looks(make_result(tasks={"digits": "accuracy"}), tmp_path)
    assert (png.parent.name, png.name, svg.name) == ("figures", "confusion_digits.png", "confusion_digits.svg")
    assert is_drawn(png)
    words = words_of(svg)
    counts = [count for row in record["matrix"] for count in row] + record["no_answer"]
    drawn = [int(word) for word in words if word.isdecimal()]
    assert sorted(drawn) == sorted(count for count in counts if count)
    right = 100 * sum(record["right"]) / 400
    assert f"digits: {right:.1f} % of 400 test rows right" in words
    assert {NONE, "twin (svd rank 16), oracle heads, seed 0", OFFLINE_WARNING} <= set(words)
    assert f"digits class 3   {100 * record['accuracy'][3]:.0f}%" in words


def test_of_many_classes_the_worst_are_drawn_with_what_they_are_taken_for(tmp_path: Path):
    record = save_confusion(tmp_path, places=100)["places"]
    png, svg = draw_looks(make_result(tasks={"places": "accuracy"}), tmp_path)
    assert is_drawn(png)
    words = words_of(svg)
    for entry in record["worst"]:
        assert f"{entry['true']}   {100 * entry['accuracy']:.0f}%" in words
        assert ", ".join(f"{each['answer'] or NONE} ({each['rows']})" for each in entry["answers"]) in words


def test_a_task_that_is_always_right_is_drawn(tmp_path: Path):
    names, labels = [f"class {index}" for index in range(40)], list(range(40))
    record = {"of": "images", **class_confusion(names, labels, labels)}
    (tmp_path / CONFUSION_FILE).write_text(json.dumps({"tasks": {"easy": record}}))
    png, _ = draw_looks(make_result(tasks={"easy": "accuracy"}), tmp_path)
    assert is_drawn(png)


def test_texts_are_counted_and_not_drawn(tmp_path: Path):
    save_confusion(tmp_path, "texts", news=4)
    assert draw_looks(make_result(), tmp_path) == []
    assert not (tmp_path / "figures").exists()


def test_examples_show_class_answer_and_top_task(tmp_path: Path):
    examples = save_examples(tmp_path, TASKS)
    png, svg = draw_looks(make_result(), tmp_path)
    assert (png.name, svg.name) == ("examples.png", "examples.svg")
    assert is_drawn(png)
    words = words_of(svg)
    assert words.count("✓") == sum(example["right"] for example in examples)
    assert sum(word.startswith("✗") for word in words) == sum(not example["right"] for example in examples)
    for example in examples:
        assert cut(example["class"], LETTERS) in words
        assert f"→ {example['top_task']} 0.75" in words
    assert "Routed examples: twin (svd rank 16), oracle heads, seed 0" in words
    assert {*TASKS, OFFLINE_WARNING} <= set(words)


@pytest.mark.parametrize(("count", "each", "wrong"), [(1, 8, 0), (8, 8, 3), (20, 3, 1), (33, 1, 0)])
def test_examples_of_few_and_of_many_tasks_are_drawn(count: int, each: int, wrong: int, tmp_path: Path):
    save_examples(tmp_path, [f"a_task_of_name_{index}" for index in range(count)], count=each, wrong=wrong)
    png, _ = draw_looks(make_result(), tmp_path)
    assert is_drawn(png)


def test_an_unseen_task_has_no_wrong_route(tmp_path: Path):
    save_examples(tmp_path, ["strange"], experts=TASKS)
    _, svg = draw_looks(make_result(), tmp_path)
    sent = re.findall(r'<text style="([^"]*)"[^>]*>→', svg.read_text())
    assert len(sent) == 8
    assert not any("fill" in style for style in sent)


def test_equal_files_give_equal_pictures(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_confusion(tmp_path / name, digits=4, places=80)
        save_examples(tmp_path / name, TASKS)
        draw_looks(make_result(), tmp_path / name)
    drawn = sorted((tmp_path / "a" / "figures").iterdir())
    assert len(drawn) == 6
    assert all(path.read_bytes() == (tmp_path / "b" / "figures" / path.name).read_bytes() for path in drawn)


@pytest.mark.parametrize(("folder", "place"), [("", "figures"), ("0", "JOB/figures")])
def test_the_report_says_where_the_jobs_own_pictures_are(folder: str, place: str, tmp_path: Path):
    job = tmp_path / folder
    write(job, make_result())
    save_confusion(job, digits=4)
    draw_looks(make_result(), job)
    found = report(tmp_path)
    assert [path.name for path in found.looks] == ["confusion_digits.png"]
    console = Console(width=200, file=io.StringIO(), color_system=None)
    print_report(found, console)
    assert f"answers: {tmp_path / place}:" in console.file.getvalue()  # type: ignore[attr-defined]
