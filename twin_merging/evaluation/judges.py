"""Who says what the answers to an exam are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from twin_merging.evaluation.answers import grade
from twin_merging.evaluation.exams import Exam, Marks

if TYPE_CHECKING:
    from twin_merging.evaluation.helm.suite import HelmSuite

SUITE = "answers"  # the name of HELM's run, in a folder that no other answers are judged in


def native(suite: HelmSuite, exam: Exam, answers: Sequence[str]) -> Marks:
    """HELM's definitions, without HELM."""
    return grade(exam, answers)


def helm(suite: HelmSuite, exam: Exam, answers: Sequence[str]) -> Marks:
    """HELM itself, in a folder of its own.

    Raises:
        UserError: if the files or the settings have changed since the exam was made.
    """
    return suite.judge(exam, answers, SUITE)
