"""The paper's normalized score (section 4.1, equation 4)."""

from __future__ import annotations


def normalized_score(raw: list[float], reference: list[float]) -> float:
    """(1/T) Σ_t raw_t / reference_t, in percent."""
    total = 0.0
    for mine, expert in zip(raw, reference, strict=True):
        total += mine / expert
    return 100 * total / len(raw)
