from __future__ import annotations

import pytest

from twin_merging.errors import UserError
from twin_merging.evaluation.selection import choose, refuse_test
from twin_merging.tasks.base import Split, Task


def split(*texts: str) -> Split:
    return Split([(text,) for text in texts], [row % 2 for row in range(len(texts))])


def task_of(name: str, validation: Split, test: Split) -> Task:
    splits = {"train": split(name, "x", "y"), "validation": validation, "test": test}
    return Task(name, "single_label", ("no", "yes"), None, "accuracy", splits, {})


CLEAN = task_of("clean", split("a", "b"), split("c", "d", "e"))
LEAKY = task_of("leaky", split("c", "d"), split("c", "d"))


def test_the_highest_score_wins_and_the_choice_is_recorded():
    choice = choose("scaling", {0.1: 0.5, 0.3: 0.9, 1.0: 0.2}, CLEAN, "validation")
    assert choice == {
        "what": "scaling",
        "chosen": 0.3,
        "split": "validation",
        "rows": 2,
        "fingerprints": {"clean": CLEAN.fingerprint("validation")},
        "scores": {"0.1": 0.5, "0.3": 0.9, "1.0": 0.2},
    }


def test_the_first_of_equals_wins():
    assert choose("scaling", {2: 0.9, 1: 0.9}, CLEAN, "validation")["chosen"] == 2


def test_rows_of_several_tasks_are_added():
    other = task_of("other", split("f", "g", "h"), split("i"))
    choice = choose("scaling", {1: 0.0}, [CLEAN, other], "validation")
    assert choice["rows"] == 5
    assert set(choice["fingerprints"]) == {"clean", "other"}


def test_the_train_split_may_be_chosen_on():
    assert choose("x", {1: 0.0}, CLEAN, "train")["rows"] == 3


@pytest.mark.parametrize(("task", "used"), [(CLEAN, "test"), (LEAKY, "validation")])
def test_test_rows_are_refused_under_either_name(task, used):
    for attempt in (
        lambda: choose("scaling", {1: 0.0}, task, used),
        lambda: refuse_test("scaling", [CLEAN, task], used),
    ):
        with pytest.raises(UserError, match="nothing may be selected on test rows") as caught:
            attempt()
        assert caught.value.key == "scaling"
        assert caught.value.found == f"the {used} split of {task.name if used != 'test' else 'clean'}"


def test_one_leaky_task_among_several_is_found():
    with pytest.raises(UserError, match="leaky"):
        choose("scaling", {1: 0.0}, [CLEAN, LEAKY], "validation")


@pytest.mark.parametrize("validation", [("d", "c"), ("c", "other"), ("c", "d", "other")])
def test_test_rows_are_refused_in_any_order_and_among_others(validation):
    overlapping = task_of("overlapping", split(*validation), split("c", "d"))
    with pytest.raises(UserError, match="overlapping"):
        choose("scaling", {1: 0.0}, overlapping, "validation")
