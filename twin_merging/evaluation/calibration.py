"""Whether probabilities mean what they say: reliability by bins, the expected calibration error, and detection by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

BINS = 15
"""Bins of equal width, as in Guo et al. (2017)."""


def reliability(confidence: Sequence[float], right: Sequence[bool], bins: int = BINS) -> list[dict[str, Any]]:
    """Rows by confidence, in ``bins`` of equal width: bin m of M holds those in ((m − 1)/M, m/M] (Guo et al., 2017).

    Args:
        confidence: the probability of each row's answer, 0 to 1; one of 0 is in the first bin.
        right: whether that answer is right.

    Returns:
        For each bin, the empty ones too: ``low``, ``high``, ``rows``, and over its rows the mean ``confidence`` and the
        ``accuracy``, which is the share of right answers; None without rows.

    Raises:
        ValueError: if the two are not of one length, or a confidence is no probability.
    """
    given, correct = np.asarray(confidence, np.float64), np.asarray(right, bool)
    if given.shape != correct.shape:
        raise ValueError(f"{len(given)} confidences and {len(correct)} answers")
    if given.size and not (given.min() >= 0 and given.max() <= 1 + 1e-6):  # a softmax of float32 may round above 1
        raise ValueError("a confidence is between 0 and 1")
    edges = np.arange(bins + 1) / bins
    place = np.clip(np.searchsorted(edges, given, side="left") - 1, 0, bins - 1)
    found: list[dict[str, Any]] = []
    for index in range(bins):
        mine = place == index
        rows = int(mine.sum())
        found.append(
            {
                "low": float(edges[index]), "high": float(edges[index + 1]), "rows": rows,
                "confidence": float(given[mine].mean()) if rows else None,
                "accuracy": float(correct[mine].mean()) if rows else None,
            }
        )  # fmt: skip
    return found


def expected_calibration_error(bins: Sequence[dict[str, Any]]) -> float | None:
    """ECE = Σ_m (n_m/n) · |accuracy_m − confidence_m|, 0 to 1, of what ``reliability`` gives; None without rows.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.
    """
    total = sum(each["rows"] for each in bins)
    if not total:
        return None
    return sum(each["rows"] / total * abs(each["accuracy"] - each["confidence"]) for each in bins if each["rows"])


def calibration(confidence: Sequence[float], right: Sequence[bool], bins: int = BINS) -> dict[str, Any]:
    """Plain JSON: ``rows``, ``ece``, mean ``confidence``, ``accuracy`` and the ``bins`` of the reliability diagram."""
    found = reliability(confidence, right, bins)
    rows = len(confidence)
    return {
        "rows": rows, "ece": expected_calibration_error(found),
        "confidence": float(np.mean(np.asarray(confidence, np.float64))) if rows else None,
        "accuracy": float(np.mean(np.asarray(right, bool))) if rows else None, "bins": found,
    }  # fmt: skip


def auroc(positives: Sequence[float], negatives: Sequence[float]) -> float | None:
    """The probability that a positive's score is above a negative's, a tie counting half; None without one of both.

    This is the area under the receiver operating characteristic, by ranks: (R₊ − n₊(n₊ + 1)/2)/(n₊ n₋), where R₊ is the
    sum of the positives' ranks among all (Mann and Whitney, 1947). The largest probability of a softmax as a detector of
    rows that belong to no class is Hendrycks and Gimpel's baseline (2017).
    """
    count, others = len(positives), len(negatives)
    if not count or not others:
        return None
    ranks = rankdata(np.concatenate([np.asarray(positives, np.float64), np.asarray(negatives, np.float64)]))
    return float((ranks[:count].sum() - count * (count + 1) / 2) / (count * others))
