from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, recall_score

from twin_merging.evaluation.classes import FREQUENT, MISTAKES, WHOLE, WORST, class_confusion, worth_a_look
from twin_merging.evaluation.metrics import NO_ANSWER


def answered(classes: int, rows: int, no_answer: float = 0.0, seed: int = 0) -> tuple[list[str], list[int], list[int]]:
    """Names, labels and answers, of which some 3 in 4 are right and a share is none of the classes."""
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, classes, rows)
    answers = np.where(chance.random(rows) < 0.75, labels, chance.integers(0, classes, rows))
    answers = np.where(chance.random(rows) < no_answer, NO_ANSWER, answers)
    return [f"class {index}" for index in range(classes)], labels.tolist(), answers.tolist()


def test_counts_are_those_of_scikit_learn():
    names, labels, answers = answered(10, 500)
    found = class_confusion(names, labels, answers)
    assert found["matrix"] == confusion_matrix(labels, answers, labels=range(10)).tolist()
    assert found["accuracy"] == pytest.approx(recall_score(labels, answers, labels=range(10), average=None))
    assert found["rows"] == [labels.count(index) for index in range(10)]
    assert found["no_answer"] == [0] * 10


def test_what_is_no_class_is_counted_beside_the_matrix():
    names, labels, answers = answered(6, 400, no_answer=0.3)
    found = class_confusion(names, labels, answers)
    # scikit-learn puts the answer −1 first and has a row of it, without any label
    whole = confusion_matrix(labels, answers, labels=[NO_ANSWER, *range(6)])[1:]
    assert found["matrix"] == whole[:, 1:].tolist()
    assert found["no_answer"] == whole[:, 0].tolist()
    assert found["rows"] == whole.sum(1).tolist()
    assert sum(found["right"]) / 400 == pytest.approx(np.mean(np.equal(labels, answers)))
    assert None in [pair["answer"] for pair in found["frequent"]]


def counted(names: list[str], labels: list[int], answers: list[int]) -> dict[tuple[str, str | None], int]:
    """Wrong pairs of names, counted one by one."""
    pairs: dict[tuple[str, str | None], int] = {}
    for label, answer in zip(labels, answers, strict=True):
        if label != answer:
            pair = names[label], None if answer == NO_ANSWER else names[answer]
            pairs[pair] = pairs.get(pair, 0) + 1
    return pairs


def test_frequent_confusions_and_worst_classes_are_those_of_a_count_by_hand():
    names, labels, answers = answered(WHOLE + 6, 3000, no_answer=0.1, seed=1)
    found, pairs = class_confusion(names, labels, answers), counted(names, labels, answers)
    assert found["matrix"] is None
    assert len(found["frequent"]) == FREQUENT
    assert [pair["rows"] for pair in found["frequent"]] == sorted(pairs.values(), reverse=True)[:FREQUENT]
    assert all(pairs[pair["true"], pair["answer"]] == pair["rows"] for pair in found["frequent"])
    lowest = sorted(found["accuracy"])[:WORST]
    assert [entry["accuracy"] for entry in found["worst"]] == lowest
    for entry in found["worst"]:
        mine = sorted((rows for (true, _), rows in pairs.items() if true == entry["true"]), reverse=True)
        assert [answer["rows"] for answer in entry["answers"]] == mine[:MISTAKES]


def test_a_class_without_rows_has_no_accuracy_and_one_that_is_always_right_is_not_among_the_worst():
    found = class_confusion(["a", "b", "c"], [0, 0, 2, 2], [0, 0, 2, 0])
    assert found["accuracy"] == [1.0, None, 0.5]
    assert found["worst"] == [{"true": "c", "rows": 2, "accuracy": 0.5, "answers": [{"answer": "a", "rows": 1}]}]
    assert found["frequent"] == [{"true": "c", "answer": "a", "rows": 1}]


@pytest.mark.parametrize(("classes", "kept"), [(WHOLE, True), (WHOLE + 1, False)])
def test_the_matrix_is_kept_up_to_a_number_of_classes(classes: int, kept: bool):
    found: dict[str, Any] = class_confusion(*answered(classes, 50))
    assert (found["matrix"] is not None) == kept
    assert len(found["accuracy"]) == classes


def test_examples_are_the_first_rows_whatever_came_of_them():
    assert worth_a_look([True] * 9, [True] * 9, 5, 3) == ([0, 1, 2, 3, 4], [])
    assert worth_a_look([False] * 9, [False] * 9, 5, 3)[0] == [0, 1, 2, 3, 4]
    assert worth_a_look([True, False], [False, True], 5, 3) == ([0, 1], [])


def test_then_come_others_with_a_wrong_route_and_with_a_wrong_answer_by_turns():
    routed = [row not in (1, 5, 7, 9) for row in range(12)]
    answered_right = [row not in (2, 7, 10) for row in range(12)]
    drawn, wrong = worth_a_look(routed, answered_right, 4, 4)
    assert drawn == [0, 1, 2, 3]
    assert wrong == [5, 7, 10, 9]  # 1 and 2 are there already; 7 is wrong in both
