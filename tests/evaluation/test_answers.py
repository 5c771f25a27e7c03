"""The definitions of HELM's scores, case by case."""

from __future__ import annotations

import pytest

from twin_merging.evaluation.answers import METRICS, exact_match, final_number_exact_match, grade, quasi_exact_match
from twin_merging.evaluation.exams import Exam, Marks, Question, task_interval
from twin_merging.tasks.generation import Request


def question(references=("Paris",), choices=None, letter=None) -> Question:
    """A question of which only the scoring matters."""
    return Question("id0", Request("?", 1), tuple(references), choices, letter, examples=0, truncated=False)


def mark(metric: str, answer: str, **about) -> float | None:
    """The mark of one answer to one question."""
    return grade(Exam("task", "", "test", (metric,), (question(**about),)), [answer]).items[metric][0]


@pytest.mark.parametrize(
    ("answer", "exact", "quasi"),
    [
        ("the Eiffel Tower", 1, 1), (" the Eiffel Tower\n", 1, 1), ("Eiffel tower.", 0, 1), ("eiffel   a tower", 0, 1),
        ("Eiffel", 0, 0), ("", 0, 0), ("Eiffel-Tower", 0, 0), ("theEiffel Tower", 0, 0),
    ],
)  # fmt: skip
def test_matches(answer: str, exact: int, quasi: int):
    assert exact_match("the Eiffel Tower", answer) == exact
    assert quasi_exact_match("the Eiffel Tower", answer) == quasi


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The answer is 1200.", 1), ("so 3 * 400 = 1,200 eggs", 1), ("1200 and then 7", 0), ("-1200", 0), ("none", 0),
        ("", 0), ("1200.5", 0), ("5 1200", 0), ("5; 1200", 1), ("x1200", 1), ("1200, or so", 1), ("12 00", 0),
    ],
)  # fmt: skip
def test_final_number(answer: str, right: int):
    assert final_number_exact_match("3 * 400 = 1200 The answer is 1,200.", answer) == right


def test_rouge_2_by_hand():
    # bigrams: the cat, cat sat, sat down / the cat, cat sat, sat, up: two of three on both sides, words stemmed
    assert METRICS["rouge_2"]("The cats sat down.", "the cat sat up") == pytest.approx(2 / 3)
    assert METRICS["rouge_2"]("one two three", "three two one") == 0
    assert METRICS["rouge_1"]("one two three", "three two one") == 1
    assert METRICS["rouge_l"]("one two three", "three two one") == pytest.approx(1 / 3)
    assert METRICS["rouge_2"]("one two three", "") == 0


def test_the_best_reference_counts():
    assert mark("exact_match", "Rome", references=("Paris", "Rome")) == 1
    assert mark("exact_match", "Bern", references=("Paris", "Rome")) == 0


def test_a_choice_is_answered_by_its_letter_alone():
    choices = {"A": "Rome", "B": "Paris", "C": "Paris"}
    marks = {
        answer: mark("exact_match", answer, choices=choices) for answer in ("B", " C\n", "A", "b", "B.", "Paris", "")
    }
    assert marks == {"B": 1, " C\n": 1, "A": 0, "b": 0, "B.": 0, "Paris": 0, "": 0}


def test_an_empty_choice_is_never_right():
    assert mark("exact_match", "A", references=("",), choices={"A": ""}) == 0


def test_bbq_accuracy_judges_the_letter_and_leaves_out_silence():
    about = {"choices": {"A": "he", "B": "he"}, "references": ("he",), "letter": "A"}
    assert [mark("bbq_accuracy", answer, **about) for answer in ("A", "B", " A ", " ", "")] == [1, 0, 1, 0, None]
    assert mark("exact_match", "B", **about) == 1


def test_scores_are_means_of_what_counts():
    exam = Exam("bbq", "", "test", ("bbq_accuracy",), tuple(question(letter="A") for _ in range(4)))
    assert grade(exam, ["A", "B", "", "A"]).scores["bbq_accuracy"] == pytest.approx(2 / 3)
    assert grade(exam, [""] * 4).scores["bbq_accuracy"] == 0


def test_intervals_hold_the_mean_and_narrow_with_rows():
    def marks(values: list) -> Marks:
        return Marks({}, {"metric": tuple(values)})

    low, high = task_interval([marks([1.0, 0.0, None]), marks([1.0, 1.0])], "metric")
    assert (low, high) == pytest.approx((0.3006, 0.9544), abs=1e-3)  # Wilson's, of 3 out of 4
    few = task_interval([marks([0.1, 0.5, 0.3])], "metric")
    many = task_interval([marks([0.1, 0.5, 0.3] * 50)], "metric")
    assert few[0] < many[0] < 0.3 < many[1] < few[1]
