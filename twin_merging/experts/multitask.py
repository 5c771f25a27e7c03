"""Multi-task learning: one encoder trained on all tasks at once, with a head a task (paper Tables 5 and 7)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from twin_merging.backbones.encoders import EncoderBackbone
from twin_merging.backbones.features import Features, Head
from twin_merging.backbones.rows import Inputs, Joined, WithMore
from twin_merging.config import FullFineTuning
from twin_merging.evaluation.metrics import metrics
from twin_merging.evaluation.selection import Choice, choose
from twin_merging.experts.fine_tuning import fit, predictions_of
from twin_merging.experts.norms import statistics_of
from twin_merging.experts.workers import workers_for
from twin_merging.tasks.base import TRAIN, VALIDATION, Task

HEADS = "heads.safetensors"


class JointModel(nn.Module):
    """An encoder and the heads of all tasks: each row is answered by its own task's head.

    Args:
        encoder: shared by all tasks.
        heads: in the order of the tasks.
        regressions: which of the tasks are.
        embedded: what heads read of rows, by the encoder; as ``EncoderBackbone.embedded``.
    """

    base_model_prefix = "encoder"
    accepts_loss_kwargs = False  # what else the Trainer would give is no encoder's input

    def __init__(
        self,
        encoder: PreTrainedModel,
        heads: list[Head],
        regressions: list[bool],
        embedded: Callable[[Any, dict[str, Tensor]], Features],
    ):
        super().__init__()
        self._embedded = embedded
        self.encoder, self.heads, self.regressions = encoder, nn.ModuleList(heads), regressions

    def forward(self, task: Tensor, labels: Tensor, **inputs: Tensor) -> SequenceClassifierOutput:
        """The mean over rows of each row's own task's loss: cross-entropy, or the squared error of a regression.

        ``logits`` (rows, the most labels of any task) hold a row's own in its first columns and −∞ in the others.
        """
        features = self._embedded(self.encoder, inputs)
        losses, given = labels.new_zeros((), dtype=torch.float32), []
        for index, (head, regression) in enumerate(zip(self.heads, self.regressions, strict=True)):
            mine = (task == index).nonzero().flatten()
            if len(mine):
                logits = head.logits({key: value[mine] for key, value in features.items()}).float()  # type: ignore[operator]
                wanted = labels[mine]
                if regression:
                    losses = losses + functional.mse_loss(logits.flatten(), wanted.float(), reduction="sum")
                else:
                    losses = losses + functional.cross_entropy(logits, wanted.long(), reduction="sum")
                given.append((mine, logits.detach()))
        together = losses.detach().new_full((len(task), max(logits.shape[1] for _, logits in given)), -torch.inf)
        for mine, logits in given:
            together[mine, : logits.shape[1]] = logits
        return SequenceClassifierOutput(loss=losses / len(task), logits=together)  # type: ignore[arg-type]


def train_jointly(
    backbone: EncoderBackbone, tasks: list[Task], options: FullFineTuning, seed: int, scratch: Path
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]], Choice]:
    """Train on the union of the training sets: batches are drawn from all rows alike, so that larger tasks weigh more.

    The epoch kept is that with the best mean over tasks of each one's own metric on validation rows.

    Args:
        scratch: receives checkpoints; training goes on from the newest.

    Returns:
        The encoder's weights, each task's head's, and the record of the epoch's choice.
    """
    torch.manual_seed(seed)
    first = backbone.new_expert(tasks[0], options.backbone_dropout)
    backbone.check_head_reads_first_token(first)
    encoder = backbone.encoder(first)
    heads = [Head(first), *(Head(backbone.new_expert(task, options.backbone_dropout)) for task in tasks[1:])]
    model = JointModel(encoder, heads, [task.kind == "regression" for task in tasks], backbone.embedded)
    model.to(backbone.device)
    rows = _union([backbone.training_inputs(task, seed) for task in tasks], tasks, TRAIN)
    held_out = _union([backbone.inputs(task, VALIDATION) for task in tasks], tasks, VALIDATION)
    workers = workers_for(options.workers, max(map(backbone.made_bytes, tasks)), options.batch_size)

    def compute_metrics(prediction) -> dict[str, float]:
        scores, start = [], 0
        for task in tasks:
            mine = slice(start, start + len(task.splits[VALIDATION]))
            logits, start = prediction.predictions[mine, : task.num_labels], mine.stop
            scores.append(metrics[task.metric](predictions_of(logits, task), task.splits[VALIDATION].labels))
        return {"score": fmean(scores)}

    fitted = fit(
        backbone, model, rows, held_out, compute_metrics, options, seed, scratch, "all tasks", workers=workers,
        callbacks=statistics_of(backbone, encoder, tasks),
    )  # fmt: skip
    choice = choose("epoch of multitask", fitted.scores, tasks, VALIDATION)
    own = {task.name: _own(head) for task, head in zip(tasks, heads, strict=True)}
    return encoder.state_dict(), own, choice


def _union(inputs: list[Inputs], tasks: list[Task], split: str) -> Joined:
    parts = []
    for index, (mine, task) in enumerate(zip(inputs, tasks, strict=True)):
        more = [{"labels": float(label), "task": index} for label in task.splits[split].labels]
        parts.append(WithMore(mine.rows, more))
    return Joined(parts)


def _own(head: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in head.state_dict().items()}
