"""Experts against the scores that are published of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def compare(
    entries: Mapping[str, Mapping[str, Any]], reference: Mapping[str, float], tolerance: float
) -> dict[str, dict]:
    """Each expert's own score beside its published one, in percent, for the tasks that have one.

    Args:
        entries: each task's entry of results.json, whose ``reference`` is what its expert scores with its own head; or
            ``measured``, where ``reference`` is a published score.
        reference: published scores, in percent, by task.
        tolerance: percent points.

    Returns:
        By task ``raw``, ``reference``, ``difference`` (raw − reference) and ``off``: whether that is more than the tolerance.
    """
    found = {}
    for task, entry in entries.items():
        own = entry.get("measured", entry["reference"])
        if task in reference and own is not None:
            raw = 100 * own
            difference = raw - reference[task]
            found[task] = {
                "raw": raw, "reference": reference[task], "difference": difference, "off": abs(difference) > tolerance,
            }  # fmt: skip
    return found


def warnings(compared: Mapping[str, Mapping[str, Any]], tolerance: float) -> list[str]:
    """A sentence for each expert that is off its reference."""
    return [
        f"warning: the {task} expert scores {entry['raw']:.2f} and {entry['reference']:.2f} is published of it: "
        f"{entry['difference']:+.2f}, more than experts.tolerance={tolerance:g}"
        for task, entry in compared.items()
        if entry["off"]
    ]
