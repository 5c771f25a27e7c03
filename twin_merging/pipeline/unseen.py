"""What the stages of unseen tasks compute: heads, and the tasks' entries of results.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twin_merging import checkpoints
from twin_merging.backbones.features import Features, Head
from twin_merging.checkpoints import Checkpoint
from twin_merging.pipeline.artefacts import backbone_of, features_of, task_of
from twin_merging.pipeline.stages import Stages
from twin_merging.pipeline.unseen_stages import TRAINING, expert_reference, frozen_features, is_frozen
from twin_merging.pipeline.unseen_stages import frozen_head as frozen_head_stage
from twin_merging.tasks.base import TRAIN, Task

HEAD = "head.safetensors"


def frozen_head(stages: Stages, name: str, folder: Path, scratch: Path) -> None:
    """Train a new head of the architecture on frozen features, by Adam on cross-entropy or squared error.

    One that does not learn, as CLIP's, is taken as it is.
    """
    task, backbone = task_of(stages, name), backbone_of(stages)
    features = features_of(stages, frozen_features(stages, name), [task])[name]
    torch.manual_seed(stages.run.seed)
    head = backbone.head(backbone.head_state(backbone.new_expert(task)), task.num_labels)
    parameters = [each for each in head.parameters() if each.requires_grad]
    if parameters:
        _fit(head, parameters, task, features, stages.run.seed)
    state = {key: value.detach().cpu().contiguous() for key, value in head.model.state_dict().items()}
    checkpoints.save(state, folder / HEAD)


def _fit(head: Head, parameters: list[nn.Parameter], task: Task, features: Features, seed: int) -> None:
    optimizer = torch.optim.Adam(parameters, lr=TRAINING["lr"])
    device = parameters[0].device
    inputs = {key: value.to(device) for key, value in features.items()}
    labels = torch.tensor(task.splits[TRAIN].labels, device=device)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(int(TRAINING["epochs"])):
        for rows in torch.randperm(len(labels), generator=generator).to(device).split(int(TRAINING["batch_size"])):
            logits = head.logits({key: value[rows] for key, value in inputs.items()})
            regression = task.kind == "regression"
            loss = (
                F.mse_loss(logits.flatten(), labels[rows].float())
                if regression
                else F.cross_entropy(logits, labels[rows])
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def unseen_heads(stages: Stages) -> dict[str, Head]:
    """The head of each unseen task."""
    heads = {}
    prefix = stages.get(stages.base).json("base.json")["prefix"] + "."
    for name in stages.unseen:
        if is_frozen(stages):
            state: Mapping[str, Tensor] = Checkpoint(stages.get(frozen_head_stage(stages, name)).path(HEAD))
        else:
            stored = Checkpoint(stages.get(stages.expert(name)).path(checkpoints.SINGLE))
            state = {key: stored[key] for key in stored if not key.startswith(prefix)}
        heads[name] = backbone_of(stages).head(dict(state.items()), task_of(stages, name).num_labels)
    return heads


def unseen_references(stages: Stages, tasks: list[Task]) -> dict[str, Any]:
    """Features by its own expert of each unseen task's test rows; none where no such expert is used."""
    if is_frozen(stages):
        return {}
    return {task.name: features_of(stages, expert_reference(stages, task.name), [task])[task.name] for task in tasks}
