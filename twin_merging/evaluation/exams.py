"""What a language model is asked, and what its answers are worth: plain data, whoever builds and whoever judges it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from twin_merging.evaluation.metrics import accuracy, confidence_interval
from twin_merging.tasks.generation import Request


@dataclass(frozen=True)
class Question:
    """One evaluated row.

    Args:
        instance: HELM's id of the row.
        request: what the model is given.
        references: the texts that count as right.
        choices: letter -> the text that it stands for; None where the answer is free text.
        letter: the right letter, where HELM judges the letter itself (BBQ).
        examples: how many solved rows the prompt shows.
        truncated: whether the prompt had to be cut to fit into the context.
    """

    instance: str
    request: Request
    references: tuple[str, ...]
    choices: Mapping[str, str] | None
    letter: str | None
    examples: int
    truncated: bool


@dataclass(frozen=True)
class Exam:
    """The questions of one of HELM's runs.

    Args:
        task: such as ``mmlu``.
        part: the subject or category; empty where a task has no parts.
        split: HELM's name of the split that its questions are from.
        metrics: names of its scores; the first is the one that the task is compared by.
        questions: in HELM's order.
    """

    task: str
    part: str
    split: str
    metrics: tuple[str, ...]
    questions: tuple[Question, ...]

    @property
    def requests(self) -> list[Request]:
        """What to complete; answers are given in this order."""
        return [question.request for question in self.questions]

    def fingerprint(self) -> str:
        """SHA-256 of all that is asked and how it is scored: equal for equal questions in equal order."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()

    def plain(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Exam:
        """An equal exam out of what ``plain`` gave, be it read from JSON."""

        def question(given: Mapping[str, Any]) -> Question:
            asked, references = given["request"], tuple(given["references"])
            return Question(
                **{**given, "request": Request(**{**asked, "stop": tuple(asked["stop"])}), "references": references}
            )

        questions = tuple(map(question, plain["questions"]))
        return cls(**{**plain, "metrics": tuple(plain["metrics"]), "questions": questions})


@dataclass(frozen=True)
class Marks:
    """What the answers to an exam are worth, in [0, 1].

    Args:
        scores: metric -> its mean over the questions.
        items: metric -> one value a question, in the exam's order; None where the metric leaves the question out. HELM
            gives some metrics as a mean only: they are not here then.
    """

    scores: dict[str, float]
    items: Mapping[str, tuple[float | None, ...]]


def answer_all(exams: Sequence[Exam], complete: Callable[[Sequence[Request]], list[str]]) -> list[list[str]]:
    """The answers to each exam, of one call over all their requests: so batches are full, and mix tasks."""
    answers = iter(complete([request for exam in exams for request in exam.requests]))
    return [[next(answers) for _ in exam.questions] for exam in exams]


def task_score(marks: Sequence[Marks], metric: str) -> float:
    """The mean of a metric over a task's parts, each of equal weight (HELM's mean over subjects)."""
    return sum(each.scores[metric] for each in marks) / len(marks)


def task_interval(marks: Sequence[Marks], metric: str) -> tuple[float, float]:
    """95 % interval of a metric over the sampling of a task's rows, all parts together.

    Wilson's where every mark is right or wrong, otherwise the percentiles of a bootstrap.
    """
    values = [value for each in marks for value in each.items[metric] if value is not None]
    if set(values) <= {0.0, 1.0}:
        return confidence_interval(accuracy, values, [1.0] * len(values))
    return confidence_interval(lambda given, _: float(np.mean(given)), values, values)
