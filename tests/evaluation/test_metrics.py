from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from twin_merging.evaluation.metrics import (
    NO_ANSWER,
    accuracy,
    accuracy_f1,
    confidence_interval,
    matthews,
    metrics,
    pearson,
    pearson_spearman,
)

CLASS_METRICS = ["accuracy", "matthews", "accuracy_f1"]


def random_labels(seed: int, classes: int, rows: int = 60) -> tuple[list[int], list[int]]:
    """Predictions that are right about two times in three, and references."""
    generator = np.random.default_rng(seed)
    wanted = generator.integers(classes, size=rows)
    noise = generator.integers(classes, size=rows)
    return np.where(generator.random(rows) < 0.6, wanted, noise).tolist(), wanted.tolist()


@pytest.mark.parametrize("seed", range(10))
def test_class_metrics_equal_their_definitions(seed):
    given, wanted = random_labels(seed, classes=2)
    TP = sum(g == 1 and w == 1 for g, w in zip(given, wanted, strict=True))
    TN = sum(g == 0 and w == 0 for g, w in zip(given, wanted, strict=True))
    FP = sum(g == 1 and w == 0 for g, w in zip(given, wanted, strict=True))
    FN = sum(g == 0 and w == 1 for g, w in zip(given, wanted, strict=True))
    share = (TP + TN) / len(given)
    assert accuracy(given, wanted) == pytest.approx(share)
    assert accuracy_f1(given, wanted) == pytest.approx((share + 2 * TP / (2 * TP + FP + FN)) / 2)
    correlation = (TP * TN - FP * FN) / math.sqrt((TP + FP) * (TP + FN) * (TN + FP) * (TN + FN))
    assert matthews(given, wanted) == pytest.approx(correlation)


@pytest.mark.parametrize("seed", range(5))
def test_class_metrics_equal_sklearn(seed):
    given, wanted = random_labels(seed, classes=2 + seed)
    assert accuracy(given, wanted) == reference.accuracy_score(wanted, given)
    assert matthews(given, wanted) == pytest.approx(reference.matthews_corrcoef(wanted, given))
    binary_given, binary_wanted = random_labels(seed, classes=2)
    expected = (
        reference.accuracy_score(binary_wanted, binary_given) + reference.f1_score(binary_wanted, binary_given)
    ) / 2
    assert accuracy_f1(binary_given, binary_wanted) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_correlations_equal_scipy(seed):
    generator = np.random.default_rng(seed)
    wanted = generator.normal(size=50)
    given = np.exp(wanted + generator.normal(size=50))
    r, rho = stats.pearsonr(given, wanted).statistic, stats.spearmanr(given, wanted).statistic
    assert pearson(list(given), list(wanted)) == pytest.approx(r)
    assert pearson_spearman(list(given), list(wanted)) == pytest.approx((r + rho) / 2)
    assert abs(r - rho) > 1e-3  # else the test could not tell them apart


@pytest.mark.parametrize("name", ["matthews", "pearson", "pearson_spearman"])
def test_a_constant_answer_scores_0_in_every_correlation(name):
    assert metrics[name]([1, 1, 1, 1], [0, 1, 1, 0]) == 0
    assert metrics[name]([0, 1, 1, 0], [1, 1, 1, 1]) == 0


def test_a_class_that_is_never_answered_has_f1_0():
    assert accuracy_f1([0, 0, 0, 0], [0, 0, 1, 1]) == 0.25


@pytest.mark.parametrize("name", CLASS_METRICS)
def test_no_answer_is_wrong_under_every_metric(name):
    metric = metrics[name]
    wanted = [0, 1, 0, 1, 1, 0, 1, 0]
    given = [0, 1, 0, 1, 1, 0, 0, 1]
    best = metric(given, wanted)
    for row in range(6):  # each right answer that is taken away costs
        less = metric([*given[:row], NO_ANSWER, *given[row + 1 :]], wanted)
        assert less < best
    assert metric([NO_ANSWER] * 8, wanted) <= 0


@pytest.mark.parametrize("row", range(8))
def test_no_answer_never_counts_as_the_other_class(row):
    wanted = [0, 1, 0, 1, 1, 0, 1, 0]
    given = list(wanted)
    given[row] = NO_ANSWER
    assert accuracy(given, wanted) == 7 / 8
    assert matthews(given, wanted) < 1
    positives = [g == 1 for g in given]
    f1 = reference.f1_score([w == 1 for w in wanted], positives)
    assert accuracy_f1(given, wanted) == pytest.approx((7 / 8 + f1) / 2)


def wilson(right: int, rows: int) -> tuple[float, float]:
    z = stats.norm.ppf(0.975)
    centre = (right + z**2 / 2) / (rows + z**2)
    half = z / (rows + z**2) * math.sqrt(right * (rows - right) / rows + z**2 / 4)
    return centre - half, centre + half


@pytest.mark.parametrize(("right", "rows"), [(0, 10), (3, 10), (10, 10), (870, 1000)])
def test_the_interval_of_accuracy_is_wilsons(right, rows):
    interval = confidence_interval(accuracy, [1] * right + [0] * (rows - right), [1] * rows)
    assert interval == pytest.approx(wilson(right, rows), abs=1e-9)


def test_the_interval_of_accuracy_covers_the_truth_about_19_times_in_20():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        given = (generator.random(100) < 0.8).astype(int)
        low, high = confidence_interval(accuracy, given.tolist(), [1] * 100)
        covered += low <= 0.8 <= high
    assert 0.92 < covered / 400 < 0.98


def test_the_bootstrap_interval_covers_the_truth_most_times():
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        wanted = generator.normal(size=80)
        given = 0.8 * wanted + 0.6 * generator.normal(size=80)  # a correlation of 0.8
        low, high = confidence_interval(pearson, given.tolist(), wanted.tolist(), resamples=100)
        covered += low <= 0.8 <= high
    assert 0.8 < covered / 60 <= 1


@pytest.mark.parametrize("name", ["matthews", "accuracy_f1"])
def test_the_bootstrap_interval_holds_the_score_and_narrows_with_rows(name):
    widths = []
    for rows in (50, 800):
        given, wanted = random_labels(0, 2, rows)
        low, high = confidence_interval(metrics[name], given, wanted, resamples=100)
        assert low < metrics[name](given, wanted) < high
        assert (low, high) == confidence_interval(metrics[name], given, wanted, resamples=100)
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_the_bootstrap_is_quiet_where_a_resample_holds_one_class(recwarn):
    low, high = confidence_interval(matthews, [0, 1, 0], [0, 1, 1])
    assert -1 <= low <= high <= 1
    assert not recwarn.list
