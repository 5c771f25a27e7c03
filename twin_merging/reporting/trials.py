"""Which of a sweep's jobs was best on validation rows, and what it scores on test rows."""

from __future__ import annotations

from collections.abc import Sequence

from twin_merging.reporting.methods import Method


def trial_note(methods: Sequence[Method]) -> str | None:
    """A sentence on the job that a sweeper chose on validation rows; None where none was scored on them."""
    trials = [
        (result["validation"]["average_normalized"], method, result)
        for method in methods
        for result in method.results
        if result.get("validation") and result["validation"]["average_normalized"] is not None
    ]
    if not trials:
        return None
    best, method, result = max(trials, key=lambda trial: trial[0])
    test = result["average_normalized"]
    return (
        f"Best of {len(trials)} trial(s) on {result['validation']['rows']} validation rows: {method.label}, {method.heads} heads, "
        f"seed {result['seed']}: average normalized {best:.1f} there"
        + (f", {test:.1f} on test rows, by which nothing was chosen." if test is not None else ".")
    )
