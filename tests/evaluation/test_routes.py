from __future__ import annotations

import random

import pytest
import torch
from oracles.routes import lost_points
from sklearn.metrics import confusion_matrix

from twin_merging.evaluation.metrics import metrics
from twin_merging.evaluation.routes import confusion, cost_of_wrong_routes
from twin_merging.tasks.base import Split, Task


def task_of(labels: list, classes: int = 3, metric: str = "accuracy") -> Task:
    split = Split([(f"row {row}",) for row in range(len(labels))], labels)
    names, kind = tuple(map(str, range(classes))), "single_label" if classes else "regression"
    return Task(
        "t",
        kind,
        names,
        None if classes else (0.0, 5.0),
        metric,
        dict.fromkeys(("train", "validation", "test"), split),
        {},
    )  # type: ignore[arg-type]


def answers_of(chance: random.Random, labels: list[int], right: list[bool]) -> dict[str, list]:
    """Answers that are often right; of rows routed right, the routed head is the own one."""

    def guess() -> list[int]:
        return [label if chance.random() < 0.6 else chance.randrange(3) for label in labels]

    expert, oracle = guess(), guess()
    routed = [own if hit else chance.choice([own, -1, 0]) for own, hit in zip(oracle, right, strict=True)]
    return {"expert": expert, "oracle": oracle, "routed": routed}


def test_confusion_equals_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    top = [torch.randint(4, (rows,), generator=generator) for rows in (30, 5, 1, 12)]
    truth = [task for task, rows in enumerate(top) for _ in rows]
    found = confusion(top, 4)
    expected = confusion_matrix(truth, torch.cat(top).numpy(), labels=range(4))
    assert found["counts"] == expected.tolist()
    assert found["accuracy"] == pytest.approx(expected.trace() / 48)
    assert found["by_task"] == pytest.approx([expected[task, task] / expected[task].sum() for task in range(4)])
    assert [sum(row) for row in found["shares"]] == pytest.approx([1.0] * 4)


def test_the_decomposition_equals_the_oracle_row_by_row():
    chance = random.Random(0)
    for _ in range(30):
        labels = [chance.randrange(3) for _ in range(40)]
        right = [chance.random() < 0.7 for _ in labels]
        answers = answers_of(chance, labels, right)
        found = cost_of_wrong_routes(task_of(labels), right, answers)
        expected = lost_points(labels, right, answers["expert"], answers["oracle"], answers["routed"])
        assert found["lost_by_heads"] == pytest.approx(expected["heads"])
        assert found["lost_by_weights"] == pytest.approx(expected["weights"])
        assert found["lost"] == pytest.approx(expected["heads"] + expected["weights"])
        assert found["wrong"] == right.count(False)


def test_right_and_wrong_routes_have_all_rows_and_all_right_answers():
    chance = random.Random(1)
    labels = [chance.randrange(3) for _ in range(60)]
    right = [chance.random() < 0.7 for _ in labels]
    answers = answers_of(chance, labels, right)
    found = cost_of_wrong_routes(task_of(labels), right, answers)
    sides = (found["right_routes"], found["wrong_routes"])
    assert sum(side["rows"] for side in sides) == found["rows"] == 60
    for who, given in answers.items():
        correct = sum(mine == label for mine, label in zip(given, labels, strict=True))
        assert sum(side["correct"][who] for side in sides) == correct
        assert found["score"][who] == pytest.approx(correct / 60)
    assert sides[0]["correct"]["oracle"] == sides[0]["correct"]["routed"]
    still = [mine == label for mine, label, hit in zip(answers["routed"], labels, right, strict=True) if not hit]
    assert sides[1]["correct"]["routed"] == sum(still)


def test_without_wrong_routes_nothing_is_lost():
    labels, given = [0, 1, 2, 0], [0, 1, 1, 0]
    found = cost_of_wrong_routes(task_of(labels), [True] * 4, {"expert": labels, "oracle": given, "routed": given})
    assert (found["lost"], found["lost_by_heads"], found["lost_by_weights"], found["wrong"]) == (0, 0, 0, 0)
    assert found["wrong_routes"]["correct"] == {"expert": 0, "oracle": 0, "routed": 0}


def test_other_metrics_are_the_tasks_own():
    labels, right = [0, 1, 1, 0, 1], [True, False, True, False, True]
    answers = {"expert": [0, 1, 1, 0, 0], "oracle": [0, 0, 1, 0, 0], "routed": [0, -1, 1, -1, 0]}
    found = cost_of_wrong_routes(task_of(labels, 2, "matthews"), right, answers)
    for who, given in (*answers.items(), ("rescued", [0, 1, 1, 0, 0])):
        assert found["score"][who] == metrics["matthews"](given, labels)
    assert found["lost"] == pytest.approx(found["score"]["rescued"] - found["score"]["routed"])


def test_a_regression_has_errors_in_place_of_right_answers():
    labels, right = [1.0, 2.0, 4.0], [True, True, False]
    answers = {"expert": [1.0, 2.5, 3.0], "oracle": [1.5, 2.0, 3.5], "routed": [1.5, 2.0, 2.5]}
    found = cost_of_wrong_routes(task_of(labels, 0, "pearson"), right, answers)
    assert found["right_routes"] == {"rows": 2, "absolute_error": {"expert": 0.25, "oracle": 0.25, "routed": 0.25}}
    assert found["wrong_routes"] == {"rows": 1, "absolute_error": {"expert": 1.0, "oracle": 0.5, "routed": 1.5}}
    all_right = cost_of_wrong_routes(task_of(labels, 0, "pearson"), [True] * 3, answers | {"routed": answers["oracle"]})
    assert all_right["wrong_routes"] == {"rows": 0, "absolute_error": {"expert": None, "oracle": None, "routed": None}}


def test_where_routes_decide_on_no_weights_only_heads_cost():
    labels, right = [0, 1, 1, 0], [True, False, False, True]
    answers = {"expert": [0, 1, 1, 0], "oracle": [0, 0, 1, 0], "routed": [0, 0, -1, 0]}
    found = cost_of_wrong_routes(task_of(labels), right, answers, mixed=False)
    assert found["lost_by_weights"] is None
    assert found["lost"] == found["lost_by_heads"] == 0.25
    assert found["score"]["rescued"] == found["score"]["oracle"]
