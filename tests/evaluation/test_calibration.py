from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from oracles import calibration as oracle
from sklearn.metrics import roc_auc_score

from twin_merging.evaluation.calibration import auroc, calibration, expected_calibration_error, reliability


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_equals_exact_fractions(bins):
    """Confidences are multiples of 1/64, of which some are edges of bins, and floats hold them exactly."""
    generator = np.random.default_rng(bins)
    for rows in (1, 7, 200):
        confidence = [Fraction(int(value), 64) for value in generator.integers(0, 65, rows)]
        right = (generator.random(rows) < 0.6).tolist()
        found = expected_calibration_error(reliability([float(value) for value in confidence], right, bins))
        assert found == pytest.approx(float(oracle.ece(confidence, right, bins)), abs=1e-12)


def test_an_edge_belongs_to_the_bin_below():
    """Fractions m/15 as floats are the edges, to the bit."""
    confidence = [index / 15 for index in range(1, 16)]
    assert [each["rows"] for each in reliability(confidence, [True] * 15)] == [1] * 15
    assert reliability([0.0], [True])[0]["rows"] == 1
    assert reliability([1.0 + 1e-7], [True])[-1]["rows"] == 1  # as a softmax of float32 may round


def test_answers_that_are_as_often_right_as_they_say_have_no_error():
    assert expected_calibration_error(reliability([0.75] * 4, [True, True, True, False])) == 0
    assert expected_calibration_error(reliability([1.0] * 4, [True, False, True, False])) == 0.5


def test_bins_keep_every_row_and_the_empty_ones():
    generator = np.random.default_rng(0)
    confidence, right = generator.random(300) ** 0.3, generator.random(300) < 0.5
    found = calibration(confidence.tolist(), right.tolist())
    assert len(found["bins"]) == 15
    assert sum(each["rows"] for each in found["bins"]) == found["rows"] == 300
    assert found["accuracy"] == pytest.approx(right.mean())
    assert found["confidence"] == pytest.approx(confidence.mean())
    empty = [each for each in found["bins"] if not each["rows"]]
    assert empty
    assert all(each["confidence"] is None and each["accuracy"] is None for each in empty)


def test_no_rows_have_no_error():
    assert calibration([], [])["ece"] is None
    assert calibration([], [])["accuracy"] is None


@pytest.mark.parametrize(
    ("confidence", "right"), [([0.5], []), ([1.5], [True]), ([-0.1], [True]), ([float("nan")], [True])]
)
def test_what_is_no_probability_is_refused(confidence, right):
    with pytest.raises(ValueError, match="confidence"):
        calibration(confidence, right)


@pytest.mark.parametrize("step", [None, 4])
def test_auroc_equals_pairs_and_scikit_learn(step):
    """With ``step`` there are ties."""
    generator = np.random.default_rng(0)
    for count, others in ((1, 1), (5, 40), (60, 20)):
        positives, negatives = generator.normal(0.5, 1, count), generator.normal(0, 1, others)
        if step:
            positives, negatives = np.round(positives * step) / step, np.round(negatives * step) / step
        found = auroc(positives.tolist(), negatives.tolist())
        assert found == pytest.approx(oracle.auroc(positives.tolist(), negatives.tolist()), abs=1e-12)
        truth = [1] * count + [0] * others
        assert found == pytest.approx(roc_auc_score(truth, np.concatenate([positives, negatives])), abs=1e-12)


def test_auroc_needs_both_sides():
    assert auroc([], [1.0]) is None
    assert auroc([1.0], []) is None
    assert auroc([0.5], [0.5]) == 0.5
