"""What BatchNorm's statistics add to a job's stages, where the backbone has some; other backbones' stages are as without them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twin_merging.config.experts import BATCHNORM_BATCH, BATCHNORM_ROWS
from twin_merging.pipeline.stage import Stage, by
from twin_merging.validation import to_plain

if TYPE_CHECKING:
    from twin_merging.pipeline.stages import Stages


def rows(stages: Stages) -> int:
    """Training rows of each task that statistics are found by, at most."""
    return getattr(stages.run.backbone, "batchnorm_rows", BATCHNORM_ROWS)


def determining(stages: Stages) -> dict[str, Any]:
    """The options that determine a merged encoder's statistics."""
    if not stages.has_statistics:
        return {}
    return {
        "batchnorm": {"rows": rows(stages), "batch": BATCHNORM_BATCH},
        "precision": stages.precision,
        **stages.reading,
    }


def data(stages: Stages) -> tuple[Stage, ...]:
    """The stages whose rows a merged encoder's statistics are found by."""
    return tuple(map(stages.data, stages.names)) if stages.has_statistics else ()


def exclusive(stages: Stages) -> tuple[Stage, ...]:
    """What each expert adds to the shared encoder's statistics; nothing where there are none."""
    if not stages.has_statistics:
        return ()
    options = determining(stages)
    inputs = (stages.base, *stages.experts, stages.shared, stages.exclusive, *data(stages))
    if stages.answers_with_own:
        options |= {"excluded": "task", "parameters": to_plain(stages.run.parameters)}
    return (Stage("batchnorm", "statistics of each task", options, inputs, by("batchnorm", "exclusive", stages)),)
