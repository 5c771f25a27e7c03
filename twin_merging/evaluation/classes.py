"""Which classes of a task are taken for which: counts of true class × answer, and which rows are worth a look.

Pure functions of what was answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice, zip_longest
from typing import Any

import numpy as np

from twin_merging.evaluation.metrics import NO_ANSWER

WHOLE = 64  # classes up to which the whole matrix is kept
FREQUENT, WORST, MISTAKES = 20, 20, 3  # confusions and classes that are named, and wrong answers of such a class


def class_confusion(class_names: Sequence[str], labels: Sequence[int], answers: Sequence[int]) -> dict[str, Any]:
    """Counts n_ca of the rows of class c that were answered with class a, of a size that grows with the classes alone.

    Args:
        class_names: the C classes.
        labels: true class of each row.
        answers: class index that was answered, or ``NO_ANSWER``.

    Returns:
        Plain JSON. A list with an entry a class: ``classes``, their names; ``rows``, Σ_a n_ca and what gave no class;
        ``right``, n_cc; ``accuracy``, n_cc over the rows, None without any; ``no_answer``. ``matrix``, n (C × C), or None of
        more than ``WHOLE`` classes. ``frequent``, the most frequent pairs of a ``true`` class and another ``answer`` with
        their ``rows``; an answer that is no class is None. ``worst``, the classes of lowest accuracy of those that are not
        always right: ``true``, ``rows``, ``accuracy`` and their most frequent wrong ``answers`` with the ``rows`` of each.
    """
    count = len(class_names)
    names = [*class_names, None]
    given = np.asarray(answers, dtype=np.int64)
    counts = np.zeros((count, count + 1), dtype=np.int64)  # what gave no class is in the last column
    np.add.at(counts, (np.asarray(labels, dtype=np.int64), np.where(given == NO_ANSWER, count, given)), 1)
    rows, right = counts.sum(1), counts.diagonal()
    accuracy = right / np.maximum(rows, 1)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    pairs = [divmod(int(place), count + 1) for place in _most(wrong.ravel(), FREQUENT)]
    worst = [int(place) for place in np.argsort(accuracy, kind="stable") if rows[place] > right[place]][:WORST]
    return {
        "classes": list(class_names), "rows": rows.tolist(), "right": right.tolist(),
        "accuracy": [share if total else None for share, total in zip(accuracy.tolist(), rows.tolist(), strict=True)],
        "no_answer": counts[:, count].tolist(), "matrix": counts[:, :count].tolist() if count <= WHOLE else None,
        "frequent": [{"true": names[true], "answer": names[other], "rows": int(wrong[true, other])} for true, other in pairs],
        "worst": [
            {
                "true": names[place], "rows": int(rows[place]), "accuracy": float(accuracy[place]),
                "answers": [{"answer": names[other], "rows": int(wrong[place, other])} for other in _most(wrong[place], MISTAKES)],
            }
            for place in worst
        ],
    }  # fmt: skip


def worth_a_look(
    routed_right: Sequence[bool], answered_right: Sequence[bool], drawn: int, wrong: int
) -> tuple[list[int], list[int]]:
    """Rows to look at: the first ones, whatever came of them, and the first others of which something is wrong.

    The rows of a split are in a seeded order in which classes are evenly spread, so that the first are a fair sample.

    Args:
        routed_right: of each row, whether its top task is its own.
        answered_right: of each row, whether its answer is right.
        drawn: how many of the first rows.
        wrong: how many others at most, by turns of those with a wrong top task and of those with a wrong answer.

    Returns:
        The two lists, without a row in common.
    """
    first = range(min(drawn, len(routed_right)))
    lost, mistaken = (
        [row for row, right in enumerate(given) if not right and row not in first]
        for given in (routed_right, answered_right)
    )
    turns = (row for row in chain.from_iterable(zip_longest(lost, mistaken)) if row is not None)
    return list(first), list(islice(dict.fromkeys(turns), wrong))


def _most(counts: np.ndarray, most: int) -> list[int]:
    """The places of the highest counts above 0, the first of equals first."""
    return [int(place) for place in np.argsort(-counts, kind="stable")[:most] if counts[place] > 0]
