from __future__ import annotations

import numpy as np
import pytest
from oracles.scoring import normalized_score

from twin_merging.evaluation.scoring import PUBLISHED, average_normalized, averages, by_published, normalized, score
from twin_merging.tasks.base import Split, Task


def task_of(metric: str, labels: list) -> Task:
    split = Split([(f"row {row}",) for row in range(len(labels))], labels)
    return Task(
        "t", "single_label", ("no", "yes"), None, metric, {"train": split, "validation": split, "test": split}, {}
    )


def test_averages_equal_the_oracle():
    generator = np.random.default_rng(0)
    for _ in range(50):
        raw, reference = generator.uniform(-1, 1, 6).tolist(), generator.uniform(0.1, 1, 6).tolist()
        entries = {
            str(i): {"raw": r, "normalized": normalized(r, b)}
            for i, (r, b) in enumerate(zip(raw, reference, strict=True))
        }
        result = averages(entries)
        assert result["average_normalized"] == pytest.approx(normalized_score(raw, reference))
        assert result["average_raw"] == pytest.approx(sum(raw) / 6)


def test_a_mean_of_ratios_not_a_ratio_of_means():
    entries = {
        "a": {"raw": 0.5, "normalized": normalized(0.5, 1.0)},
        "b": {"raw": 0.1, "normalized": normalized(0.1, 0.1)},
    }
    assert averages(entries)["average_normalized"] == pytest.approx(75)


@pytest.mark.parametrize("reference", [0.0, -0.2])
def test_no_ratio_to_a_reference_that_is_not_above_0(reference):
    assert normalized(0.5, reference) is None


def test_undefined_scores_are_left_out_of_the_average():
    assert average_normalized([80.0, None, 100.0]) == 90.0
    assert average_normalized([None, None]) is None
    assert averages({"a": {"raw": 0.1, "normalized": None}}) == {"average_raw": 0.1, "average_normalized": None}


def test_the_reference_itself_has_100():
    assert normalized(0.37, 0.37) == 100.0


def test_score_compares_with_the_reference_on_the_same_rows():
    task = task_of("accuracy", [0, 1, 1, 0])
    entry = score(task, [0, 1, 0, 1], [0, 1, 1, 1])
    low, high = entry.pop("confidence_interval")
    assert entry == {
        "metric": "accuracy",
        "raw": 0.5,
        "reference": 0.75,
        "normalized": pytest.approx(200 / 3),
        "rows": 4,
    }
    assert low < 0.5 < high


def test_a_useless_reference_gives_no_normalized_score():
    entry = score(task_of("matthews", [0, 1, 1, 0]), [0, 1, 1, 0], [1, 1, 1, 1])
    assert (entry["raw"], entry["reference"], entry["normalized"]) == (1.0, 0.0, None)


def test_scores_are_relative_to_published_ones_where_that_is_asked_for():
    tasks = {
        "a": {"raw": 0.5, "reference": 0.8, "normalized": 62.5, "rows": 4},
        "b": {"raw": 0.3, "reference": 0.3, "normalized": 100.0, "rows": 4},
        "unseen": {"raw": 0.9, "reference": None, "normalized": None, "rows": 4},
    }
    found = by_published(tasks, {"a": 50.0, "b": 60.0}, ["a", "b"])
    assert found["tasks"]["a"] == {"raw": 0.5, "reference": 0.5, "measured": 0.8, "normalized": 100.0, "rows": 4}
    assert found["tasks"]["b"]["normalized"] == pytest.approx(50)
    assert (found["tasks"]["unseen"]["reference"], found["tasks"]["unseen"]["normalized"]) == (None, None)
    assert found["average_normalized"] == pytest.approx(75)
    assert (found["average_raw"], found["reference"]) == (pytest.approx(0.4), PUBLISHED)
    assert tasks["a"]["reference"] == 0.8
