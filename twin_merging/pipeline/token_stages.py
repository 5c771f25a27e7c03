"""Lengths of rows in tokens, which training is counted in: a stage a task and split, so that jobs of one cache count it once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twin_merging.experts.published import source_of
from twin_merging.pipeline.routing_stages import reads_tokens
from twin_merging.pipeline.stage import Stage, by
from twin_merging.tasks.base import TRAIN, VALIDATION

if TYPE_CHECKING:
    from twin_merging.pipeline.stages import Stages

OBSERVED = {"fisher": VALIDATION, "gram": TRAIN}
"""The split whose rows a statistic is taken over, by what a static method needs."""


def counted(stages: Stages) -> dict[str, list[Stage]]:
    """What is trained or found out beside the experts -> each task's lengths of the rows that it is given.

    ``router``, where an encoder runs for it; ``statistics`` of the experts' inputs; the ``coefficients`` λ that are learned;
    surgery's ``adapters``; and joint training (``multitask``), where imported experts have not counted its rows. Empty lists
    for what this job does not need.
    """
    run, method = stages.run, stages.static_method
    needs = getattr(method, "needs", None)
    imported = any(source_of(run.experts, name) is not None for name in stages.names)
    routes = stages.trains_router and not reads_tokens(stages)
    return {
        "router": _each(stages, run.router.source, run.router.rows) if routes else [],
        "statistics": _each(stages, OBSERVED[needs], method.rows) if needs in OBSERVED else [],
        "coefficients": _each(stages, method.inputs) if needs == "coefficients" else [],
        "adapters": _each(stages, stages.method.inputs) if stages.is_surgery else [],
        "multitask": _each(stages, TRAIN) if stages.is_joint and imported else [],
    }


def needed(stages: Stages) -> list[Stage]:
    """All of these."""
    return [stage for each in counted(stages).values() for stage in each]


def _each(stages: Stages, split: str, rows: int | None = None) -> list[Stage]:
    options = {"split": split, "rows": rows, **stages.reading}
    return [
        Stage("lengths", f"{name}, {split} rows", options, (stages.base, stages.data(name)), by("costs", "lengths", stages, name, split, rows))
        for name in stages.names
    ]  # fmt: skip
