"""Metrics by name: predictions and references in, one number out, higher is better."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

Metric = Callable[[Sequence, Sequence], float]
NO_ANSWER = -1
"""The prediction of a row whose answer is not one of the task's classes: wrong under every metric."""


def accuracy(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Share of equal labels."""
    return float(accuracy_score(references, predictions))


def matthews(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Matthews correlation coefficient; 0 where one side is constant."""
    return float(matthews_corrcoef(references, predictions))


def accuracy_f1(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Mean of accuracy and the F1 of class 1 (GLUE's MRPC and QQP)."""
    f1 = f1_score(references, predictions, labels=[1], average="micro", zero_division=0)
    return (accuracy(predictions, references) + float(f1)) / 2


def pearson(predictions: Sequence[float], references: Sequence[float]) -> float:
    """Pearson correlation; 0 where one side is constant, as an uninformative answer deserves."""
    return _correlation(stats.pearsonr, predictions, references)


def pearson_spearman(predictions: Sequence[float], references: Sequence[float]) -> float:
    """Mean of Pearson's and Spearman's correlations (GLUE's STS-B)."""
    return (pearson(predictions, references) + _correlation(stats.spearmanr, predictions, references)) / 2


metrics: dict[str, Metric] = {
    "accuracy": accuracy,
    "matthews": matthews,
    "accuracy_f1": accuracy_f1,
    "pearson": pearson,
    "pearson_spearman": pearson_spearman,
}


def confidence_interval(
    metric: Metric, predictions: Sequence, references: Sequence, resamples: int = 300, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a metric over the sampling of test rows.

    Wilson's for accuracy; otherwise the percentiles of a bootstrap over rows.
    """
    if metric is accuracy:
        right = sum(given == wanted for given, wanted in zip(predictions, references, strict=True))
        interval = stats.binomtest(right, len(references)).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)
    given, wanted = np.asarray(predictions), np.asarray(references)
    draws = np.random.default_rng(seed).integers(len(wanted), size=(resamples, len(wanted)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resample may hold one class only
        low, high = np.percentile([metric(given[rows], wanted[rows]) for rows in draws], [2.5, 97.5])
    return float(low), float(high)


def _correlation(function: Callable, predictions: Sequence[float], references: Sequence[float]) -> float:
    if len(set(predictions)) < 2 or len(set(references)) < 2:
        return 0.0
    return float(function(predictions, references)[0])
