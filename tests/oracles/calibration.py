"""Guo et al. (2017), equation 3, and the area under the ROC curve as what it means: pairs, one by one."""

from __future__ import annotations

from fractions import Fraction


def ece(confidence: list[Fraction], right: list[bool], bins: int) -> Fraction:
    """Σ_m (n_m/n) |acc(B_m) − conf(B_m)|, B_m the rows with a confidence in ((m − 1)/M, m/M], in exact fractions."""
    total = Fraction(0)
    for m in range(1, bins + 1):
        members = [
            row
            for row, value in enumerate(confidence)
            if Fraction(m - 1, bins) < value <= Fraction(m, bins) or (m == 1 and value == 0)
        ]
        if members:
            accuracy = Fraction(sum(right[row] for row in members), len(members))
            mean = sum((confidence[row] for row in members), Fraction(0)) / len(members)
            total += Fraction(len(members), len(confidence)) * abs(accuracy - mean)
    return total


def auroc(positives: list[float], negatives: list[float]) -> float:
    """The share of pairs in which the positive is above, ties counting half."""
    wins = 0.0
    for mine in positives:
        for other in negatives:
            wins += 1.0 if mine > other else 0.5 if mine == other else 0.0
    return wins / (len(positives) * len(negatives))
