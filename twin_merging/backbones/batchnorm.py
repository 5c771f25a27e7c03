"""BatchNorm's running statistics, which are of data: no rule merges them, and a merged encoder finds its own.

Between experts the variance of what a linear merge computes collapses, and statistics merged alike are those of no model
(Jordan et al., REPAIR, ICLR 2023). A pass over inputs without labels finds them, as ``torch.optim.swa_utils.update_bn`` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from twin_merging.backbones.encoders import EncoderBackbone
from twin_merging.backbones.rows import Inputs, Together
from twin_merging.progress import progress


def norms(encoder: nn.Module) -> list[_BatchNorm]:
    """An encoder's layers that have running statistics and follow the batch while they learn."""
    return [each for each in encoder.modules() if isinstance(each, _BatchNorm) and each.running_mean is not None]


@torch.no_grad()
def recompute(
    backbone: EncoderBackbone, encoder: nn.Module, inputs: Sequence[Inputs], batch_size: int, label: str
) -> None:
    """Give an encoder the running statistics of some tasks' rows, in place of its own.

    Of K batches b, each normalized by itself, μ = (1/K) Σ μ_b and σ² = (1/K) Σ σ²_b with σ²_b = Σ (x − μ_b)² / (n − 1): torch's
    cumulative average (``momentum=None``). Each batch has rows of all tasks, as many of each and in their order, so that it
    is normalized as the tasks together are and all batches weigh alike. Only BatchNorm is in training mode: nothing is drawn
    at random. An encoder without BatchNorm stays as it is, and nothing runs.

    Args:
        inputs: each task's rows.
        batch_size: rows of a batch, about; more or fewer give other statistics.
    """
    layers = norms(encoder)
    if not layers:
        return
    encoder.to(backbone.device).eval()
    together = Together(inputs)
    parts = _batches([len(mine.rows) for mine in inputs], batch_size)
    with progress(label, len(together.rows), "rows") as bar, _accumulating(layers):
        for rows, batch in zip(parts, backbone.batches(together, parts), strict=True):
            with torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.autocast):
                encoder(**batch)
            bar.advance(len(rows))


@contextmanager
def by_batch(layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """Within, these layers normalize each batch by its own statistics, with a gradient, and remember none of them."""
    with _in_training(layers, 0.0):
        yield


@contextmanager
def _accumulating(layers: Sequence[_BatchNorm]) -> Iterator[None]:
    for layer in layers:
        layer.reset_running_stats()
    with _in_training(layers, None):
        yield


@contextmanager
def _in_training(layers: Sequence[_BatchNorm], momentum: float | None) -> Iterator[None]:
    before = [(layer.momentum, layer.training) for layer in layers]
    for layer in layers:
        layer.momentum = momentum
        layer.training = True  # and not what is inside it, as in timm's layers that drop and activate too
    try:
        yield
    finally:
        for layer, (own, training) in zip(layers, before, strict=True):
            layer.momentum, layer.training = own, training


def _batches(counts: Sequence[int], size: int) -> list[list[int]]:
    """Row numbers of tasks that lie one after the other, about ``size`` a part, each part with its share of every task."""
    parts, starts = max(1, round(sum(counts) / size)), [sum(counts[:task]) for task in range(len(counts))]
    return [
        [
            start + row
            for start, count in zip(starts, counts, strict=True)
            for row in range(part * count // parts, (part + 1) * count // parts)
        ]
        for part in range(parts)
    ]
