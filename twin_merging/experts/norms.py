"""BatchNorm's running statistics of an encoder that learns, found anew before each epoch is judged and kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.utils.data import Subset
from transformers import TrainerCallback

from twin_merging.backbones import batchnorm
from twin_merging.backbones.encoders import EncoderBackbone
from twin_merging.config.experts import BATCHNORM_BATCH, BATCHNORM_ROWS
from twin_merging.tasks.base import TRAIN, Task

log = logging.getLogger("twin_merging")


def statistics_of(backbone: EncoderBackbone, encoder: nn.Module, tasks: Sequence[Task]) -> list[TrainerCallback]:
    """What finds them by the tasks' first training rows, as of a merged encoder, so that both are judged alike; nothing without
    BatchNorm.

    The average that training keeps lags behind the weights: with the momentum of 0.01 that some have, by hundreds of steps.
    """
    if not batchnorm.norms(encoder):
        return []
    most = getattr(backbone.options, "batchnorm_rows", BATCHNORM_ROWS)
    rows = range(min(most, *(len(task.splits[TRAIN]) for task in tasks)))
    return [_Statistics(backbone, encoder, [backbone.inputs(task, TRAIN, rows) for task in tasks])]


def without_lonely(rows: Any, batch_size: int, model: nn.Module, label: str) -> Any:
    """Rows in batches of which none has one row alone, of which BatchNorm, if the model has one, finds no variance: the last row
    of all is left out where there would be one."""
    if len(rows) == 1 or len(rows) % batch_size != 1 or not batchnorm.norms(model):
        return rows
    log.info(
        "  fine-tune %s leaves out the last of %d rows, which would be a batch by itself: BatchNorm finds no variance of one",
        label, len(rows),
    )  # fmt: skip
    return Subset(rows, range(len(rows) - 1))


class _Statistics(TrainerCallback):
    def __init__(self, backbone: EncoderBackbone, encoder: nn.Module, inputs: list[Any]):
        self.backbone, self.encoder, self.inputs = backbone, encoder, inputs

    def on_epoch_end(self, args, state, control, **_):
        batchnorm.recompute(self.backbone, self.encoder, self.inputs, BATCHNORM_BATCH, "BatchNorm")
