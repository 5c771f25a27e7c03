"""BatchNorm's running statistics of merged encoders, found on training rows without their labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twin_merging import checkpoints, parameters
from twin_merging.backbones import batchnorm
from twin_merging.checkpoints import Checkpoint
from twin_merging.config.experts import BATCHNORM_BATCH
from twin_merging.evaluation.selection import refuse_test, unlabelled
from twin_merging.pipeline import batchnorm_stages
from twin_merging.pipeline.artefacts import (
    ENCODER,
    STATISTICS,
    backbone_of,
    compressed_of,
    encoder_with,
    inputs_of,
    keeps,
    read_all,
    tasks_of,
    with_own,
)
from twin_merging.pipeline.stages import Stages
from twin_merging.sparsifiers.stored import weighted_sum
from twin_merging.tasks.base import TRAIN, Task

WHAT = "BatchNorm statistics"


def refresh(stages: Stages, encoder: nn.Module, tasks: list[Task], label: str) -> None:
    """Give a merged encoder the statistics of these tasks' first training rows, of as many of each; without BatchNorm nothing is done."""
    if not stages.has_statistics:
        return
    refuse_test(WHAT, tasks, TRAIN)
    inputs = [inputs_of(stages, task, TRAIN, count) for task, count in zip(tasks, _rows(stages, tasks), strict=True)]
    batchnorm.recompute(backbone_of(stages), encoder, inputs, BATCHNORM_BATCH, f"BatchNorm: {label}")


def refreshed(stages: Stages, weights: Mapping[str, Tensor], label: str) -> tuple[dict[str, Tensor], list[dict]]:
    """A merged encoder's weights with statistics of all tasks alike, and the record of what they were found by."""
    if not stages.has_statistics:
        return dict(weights), []
    encoder, tasks = encoder_with(stages, weights), tasks_of(stages)
    refresh(stages, encoder, tasks, label)
    return {name: tensor.cpu() for name, tensor in encoder.state_dict().items()}, [record(stages, tasks)]


def take_own(stages: Stages, encoder: nn.Module, weights: Mapping[str, Tensor], index: int) -> None:
    """Give an encoder of these weights one task's expert's values of what does not merge, and statistics that fit them."""
    if not keeps(stages, weights):
        return
    encoder.load_state_dict(with_own(stages, weights, index))
    refresh(stages, encoder, tasks_of(stages), f"with what {stages.names[index]} keeps")


def exclusive(stages: Stages, folder: Path, scratch: Path) -> None:
    """δ_t = s_t − s_s of every running mean and variance, (T, channels), by name.

    s_t are the statistics of θ_s + v_t, compressed as it is, on task t's rows alone, and s_s the shared encoder's. Under w(x) the
    statistics are s_s + Σ_t w_t(x) δ_t: at w = e_t exactly those of θ_s + v_t, and for Σ_t w_t = 1 and w ≥ 0 a mean of all
    tasks' of which no variance is negative. With ``evaluation.excluded=task`` θ_s + v_t has the expert's values of what does
    not merge, as it has where its task's rows are answered.
    """
    shared = read_all(Checkpoint(stages.get(stages.shared).path(ENCODER)))
    knowledge, tasks = compressed_of(stages), tasks_of(stages)
    found: dict[str, list[Tensor]] = {}
    for index, task in enumerate(tasks):
        chosen = torch.eye(len(tasks))[index]
        weights = {**shared, **{name: shared[name] + weighted_sum(chosen, kept) for name, kept in knowledge.items()}}
        encoder = encoder_with(stages, with_own(stages, weights, index) if stages.answers_with_own else weights)
        refresh(stages, encoder, [task], f"{task.name} expert")
        for name, tensor in encoder.state_dict().items():
            if parameters.is_statistic(name) and tensor.is_floating_point():
                found.setdefault(name, []).append(tensor.cpu() - shared[name])
    checkpoints.save({name: torch.stack(each) for name, each in found.items()}, folder / STATISTICS)
    (folder / "choice.json").write_text(json.dumps({**record(stages, tasks), "what": f"{WHAT} of each expert"}))


def record(stages: Stages, tasks: list[Task]) -> dict[str, Any]:
    """What statistics were found by: rows of the training split, of which no label was read."""
    counts = _rows(stages, tasks)
    return {**unlabelled(WHAT, f"{counts[0]} rows a task", {}, tasks, TRAIN), "rows": sum(counts)}


def _rows(stages: Stages, tasks: list[Task]) -> list[int]:
    """How many training rows of each task statistics are found by: as many of each."""
    return [min(batchnorm_stages.rows(stages), *(len(task.splits[TRAIN]) for task in tasks))] * len(tasks)
