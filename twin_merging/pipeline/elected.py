"""What EMR-Merging keeps of the experts, as a stage."""

from __future__ import annotations

from pathlib import Path

from twin_merging import checkpoints, parameters
from twin_merging.merging.emr import elected
from twin_merging.merging.stack import Stack
from twin_merging.pipeline.artefacts import base_weights, expert_weights
from twin_merging.pipeline.stages import Stages


def exclusive(stages: Stages, folder: Path, scratch: Path) -> None:
    """One vector for all tasks, masks at eight numbers a byte, and rescalers: ``twin_merging.merging.emr.elected``."""
    start = base_weights(stages)
    selected = parameters.select(start, stages.run.parameters.include, stages.run.parameters.exclude)
    stored = elected(Stack(start, expert_weights(stages), selected))
    checkpoints.save(stored, folder / "exclusive.safetensors")
