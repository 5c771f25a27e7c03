from __future__ import annotations

import pytest

from twin_merging.evaluation.expert_scores import compare, warnings

ENTRIES = {"cola": {"reference": 0.40}, "rte": {"reference": 0.67}, "mine": {"reference": 0.9}}
PUBLISHED = {"cola": 56.52, "rte": 66.43, "absent": 50.0}


def test_experts_are_compared_in_percent_where_a_score_is_published():
    found = compare(ENTRIES, PUBLISHED, tolerance=2.0)
    assert set(found) == {"cola", "rte"}
    assert found["cola"]["difference"] == pytest.approx(-16.52)
    assert found["rte"]["difference"] == pytest.approx(0.57)
    assert {task: entry["off"] for task, entry in found.items()} == {"cola": True, "rte": False}


def test_only_those_that_are_off_are_warned_of():
    (sentence,) = warnings(compare(ENTRIES, PUBLISHED, 2.0), 2.0)
    assert "cola" in sentence
    assert "40.00" in sentence
    assert "-16.52" in sentence
    assert not warnings(compare(ENTRIES, PUBLISHED, 20.0), 20.0)


def test_what_an_expert_scores_here_is_compared_whatever_scores_are_relative_to():
    entries = {"cola": {"reference": 0.5652, "measured": 0.40}, "rte": {"reference": None}}
    found = compare(entries, PUBLISHED, tolerance=2.0)
    assert set(found) == {"cola"}
    assert found["cola"]["raw"] == pytest.approx(40)
