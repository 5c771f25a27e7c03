from __future__ import annotations

import torch

from twin_merging.evaluation.heads import oracle_answers, routed_answers
from twin_merging.evaluation.metrics import NO_ANSWER
from twin_merging.tasks.base import Split, Task


def task_of(name: str, class_names: tuple[str, ...] = (), label_range: tuple[float, float] | None = None) -> Task:
    split = Split([("a row",)], [0])
    kind = "single_label" if class_names else "regression"
    return Task(
        name, kind, class_names, label_range, "accuracy", {"train": split, "validation": split, "test": split}, {}
    )


MOVIES = task_of("movies", ("negative", "positive"))
TWEETS = task_of("tweets", ("neutral", "positive", "negative"))
TOPICS = task_of("topics", ("sport", "business"))
STARS = task_of("stars", label_range=(1, 5))
ALL = [MOVIES, TWEETS, TOPICS, STARS]


def constant(*logits: float):
    """A head that answers every row alike."""
    return lambda features: torch.tensor([logits]).repeat(len(features["first"]), 1)


HEADS = {
    "movies": constant(0.0, 1.0),  # positive
    "tweets": constant(0.0, 0.0, 1.0),  # negative
    "topics": constant(1.0, 0.0),  # sport
    "stars": constant(4.25),
}


def features(rows: int) -> dict[str, torch.Tensor]:
    return {"first": torch.arange(rows).float().unsqueeze(1), "mean": torch.zeros(rows, 1)}


def routed(task: Task, top: list[int]) -> list:
    return routed_answers(task, features(len(top)), HEADS, torch.tensor(top), ALL)


def test_oracle_answers_are_the_own_heads():
    assert oracle_answers(TWEETS, features(2), HEADS) == [2, 2]
    assert oracle_answers(STARS, features(2), HEADS) == [4.25, 4.25]


def test_routed_to_the_true_task_is_the_own_heads_answer():
    for index, task in enumerate(ALL):
        assert routed(task, [index] * 3) == oracle_answers(task, features(3), HEADS)


def test_a_class_of_another_task_counts_by_its_name():
    assert routed(MOVIES, [1]) == [0]  # tweets says negative, which is class 0 of movies
    assert routed(TWEETS, [0]) == [1]  # movies says positive, which is class 1 of tweets


def test_a_name_that_the_true_task_does_not_have_is_no_answer():
    assert routed(MOVIES, [2]) == [NO_ANSWER]


def test_a_number_is_no_class():
    assert routed(MOVIES, [3]) == [NO_ANSWER]


def test_to_a_regression_another_head_answers_the_middle():
    assert routed(STARS, [0, 3, 2]) == [3.0, 4.25, 3.0]


def test_rows_keep_their_order_and_each_head_sees_its_own_rows():
    heads = {
        "movies": lambda f: torch.stack([f["first"][:, 0] < 2, f["first"][:, 0] >= 2], 1).float(),
        "tweets": lambda f: torch.nn.functional.one_hot(f["first"][:, 0].long() % 3, 3).float(),
    }
    given = routed_answers(MOVIES, features(6), heads, torch.tensor([0, 1, 0, 1, 0, 1]), [MOVIES, TWEETS])
    # rows 1, 3, 5 are answered by tweets' classes 1 (positive), 0 (neutral), 2 (negative)
    assert given == [0, 1, 1, NO_ANSWER, 1, 0]
