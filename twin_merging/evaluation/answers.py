"""Scores of answers, by HELM's definitions: what HELM's own metrics would give, without running them.

An answer is stripped of white space at both ends. Where a question has choices, the answer must be one of their letters
and stands for that choice's text; any other answer is wrong. Of several references the best score counts. An empty answer
is wrong under every metric but ``bbq_accuracy``, which leaves it out.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from functools import cache

from twin_merging.evaluation.exams import Exam, Marks, Question

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
# a sign, digits and commas, then one character of any kind and more digits: HELM's dot is not escaped, so that
# "18 20" is one number; a score that is to agree must read it so too
NUMBER = re.compile(r"-?[\d,]+(?:.\d+)?")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(reference: str, answer: str) -> float:
    """1 where both are the same text, white space at the ends aside; 0 for an empty answer."""
    return float(bool(answer) and answer.strip() == reference.strip())


def quasi_exact_match(reference: str, answer: str) -> float:
    """1 where both are the same words: without case, punctuation, articles and the amount of white space."""
    return float(bool(answer) and _plain_words(answer) == _plain_words(reference))


def final_number_exact_match(reference: str, answer: str) -> float:
    """1 where the last number of both is the same text, thousands' commas aside (GSM8K)."""
    return exact_match(_final_number(reference), _final_number(answer))


def rouge(kind: str) -> Callable[[str, str], float]:
    """ROUGE's F1 with Porter's stemmer, by rouge_score; ``kind`` is ``rouge1``, ``rouge2`` or ``rougeL``."""
    return lambda reference, answer: _scorer(kind).score(reference, answer)[kind].fmeasure


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "quasi_exact_match": quasi_exact_match,
    "final_number_exact_match": final_number_exact_match,
    "rouge_1": rouge("rouge1"),
    "rouge_2": rouge("rouge2"),
    "rouge_l": rouge("rougeL"),
}


def grade(exam: Exam, answers: Sequence[str]) -> Marks:
    """Every metric of the exam on every answer; ``answers[i]`` is the one to question i."""
    items = {
        metric: tuple(_mark(metric, question, answer) for question, answer in zip(exam.questions, answers, strict=True))
        for metric in exam.metrics
    }
    return Marks({metric: _mean(values) for metric, values in items.items()}, items)


def _mark(metric: str, question: Question, answer: str) -> float | None:
    if metric == "bbq_accuracy":
        return float(answer.strip() == question.letter) if answer else None
    given = answer.strip()
    if question.choices is not None:
        given = question.choices.get(given, "")
    return max(METRICS[metric](reference, given) for reference in question.references)


def _mean(values: Sequence[float | None]) -> float:
    """The mean of what counts; 0 where nothing does."""
    counted = [value for value in values if value is not None]
    return sum(counted) / len(counted) if counted else 0.0


def _plain_words(text: str) -> list[str]:
    return ARTICLES.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)).split()


def _final_number(text: str) -> str:
    numbers = NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else ""


@cache
def _scorer(kind: str):
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=True)
