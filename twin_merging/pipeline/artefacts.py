"""Artefacts read back as what the stages work with: tasks, weights, heads, features, exclusive knowledge."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from twin_merging import checkpoints, parameters
from twin_merging.backbones.encoders import EncoderBackbone, Inputs
from twin_merging.backbones.features import Features, Head
from twin_merging.backbones.sequence_classifier import SequenceClassifierBackbone
from twin_merging.checkpoints import Checkpoint
from twin_merging.config import backbones, routers
from twin_merging.merging.emr import task_vectors
from twin_merging.pipeline import batchnorm_stages
from twin_merging.pipeline.environment import resolve_device
from twin_merging.pipeline.pixels import kept
from twin_merging.pipeline.routing_stages import read, reads_tokens
from twin_merging.pipeline.stage import Stage
from twin_merging.pipeline.stages import ENCODER, Stages
from twin_merging.routers.oracle import one_hot, oracle_weights
from twin_merging.routers.tfidf import padded
from twin_merging.sparsifiers.stored import Delta, read_back
from twin_merging.tasks.base import TEST, Task

FEATURES = "features.safetensors"
MADE = "made.safetensors"
STATISTICS = "statistics.safetensors"


def backbone_of(stages: Stages) -> EncoderBackbone:
    options = stages.run.backbone
    device = resolve_device(stages.run.device)
    backbone = _one_backbone(
        options.name, json.dumps(vars(options)), stages.backbone_source.folder, device, stages.precision == "bf16"
    )
    backbone.remember = partial(_remembered, stages)
    return backbone


def _remembered(stages: Stages, what: str, label: str, determined_by: Any, make: Callable[[], Tensor]) -> Tensor:
    """A tensor of a stage of its own, which only its maker can name: what determines it is read from data."""

    def write(folder: Path, scratch: Path) -> None:
        checkpoints.save({"tensor": make()}, folder / MADE)

    stage = Stage(what.replace(" ", "_"), label, determined_by, (stages.base,), lambda: write)
    return Checkpoint(stages.get(stage).path(MADE))["tensor"]


@lru_cache(maxsize=1)
def _one_backbone(name: str, options: str, folder: Path, device: torch.device, autocast: bool) -> EncoderBackbone:
    """One object for all jobs of a process, since its tokenizer is slow to load."""
    component = backbones[name]
    return component.load()(component.options(**json.loads(options)), folder, device, autocast)


def task_of(stages: Stages, name: str) -> Task:
    """A task, whose images are decoded in the cache if there is room for them."""
    task = _read_task(stages.get(stages.data(name)).folder)
    return task if task.images is None else replace(task, pixels=kept(stages, task, backbone_of(stages)))


@lru_cache(maxsize=64)
def _read_task(folder: Path) -> Task:
    return Task.load(folder)


def tasks_of(stages: Stages) -> list[Task]:
    return [task_of(stages, name) for name in stages.names]


def evaluated_of(stages: Stages) -> list[Task]:
    """The merged tasks, then those that are unseen."""
    return [task_of(stages, name) for name in stages.evaluated]


def inputs_of(stages: Stages, task: Task, split: str, rows: int | None = None) -> Inputs:
    """The first rows of a task's split, by default all, as the backbone reads them."""
    return backbone_of(stages).inputs(task, split, range(len(task.splits[split]))[:rows])


def base_weights(stages: Stages) -> Checkpoint:
    return Checkpoint(stages.get(stages.base).path(ENCODER))


def weights_at(stages: Stages, path: Path) -> Checkpoint:
    prefix = stages.get(stages.base).json("base.json")["prefix"] + "." if path.name == checkpoints.SINGLE else ""
    return Checkpoint(path, prefix)


def expert_weights(stages: Stages) -> list[Checkpoint]:
    start = base_weights(stages)
    experts = [weights_at(stages, stages.get(stage).path(checkpoints.SINGLE)) for stage in stages.experts]
    for stage, weights in zip(stages.experts, experts, strict=True):
        if set(weights) != set(start):
            checkpoints.check(read_all(weights), read_all(start), f"expert {stage.label}")
    return experts


def with_own(stages: Stages, weights: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """An encoder's weights, but what does not merge has the values of one task's expert."""
    left_out, expert = keeps(stages, weights), expert_weights(stages)[index]
    return {name: expert[name] if name in left_out else tensor for name, tensor in weights.items()}


def keeps(stages: Stages, weights: Iterable[str]) -> set[str]:
    """The parameters that do not merge; statistics, which are of the whole encoder's, are none."""
    selected = parameters.select(weights, stages.run.parameters.include, stages.run.parameters.exclude)
    return {name for name in set(weights) - set(selected) if not parameters.is_statistic(name)}


def read_all(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(weights.items())


def head_states(stages: Stages) -> list[dict[str, Tensor]]:
    prefix = stages.get(stages.base).json("base.json")["prefix"] + "."
    files = [Checkpoint(stages.get(stage).path(checkpoints.SINGLE)) for stage in stages.experts]
    return [{name: file[name] for name in file if not name.startswith(prefix)} for file in files]


def heads_of(stages: Stages) -> dict[str, Head]:
    backbone = backbone_of(stages)
    states = zip(tasks_of(stages), head_states(stages), strict=True)
    return {task.name: backbone.head(state, task.num_labels) for task, state in states}


def encoder_with(stages: Stages, weights: Mapping[str, Tensor]) -> nn.Module:
    """An encoder of the backbone's architecture with these weights."""
    return backbone_of(stages).encoder_with(weights)


def features_of(stages: Stages, stage: Stage, tasks: list[Task]) -> dict[str, Features]:
    """A stage's features by task."""
    stored = Checkpoint(stages.get(stage).path(FEATURES))
    return {
        task.name: {key.rpartition(".")[2]: stored[key] for key in stored if key.rpartition(".")[0] == task.name}
        for task in tasks
    }


def exclusive_of(stages: Stages) -> dict[str, Delta]:
    """v_t of every parameter, and of a BatchNorm's statistics what each expert adds to the shared encoder's."""
    statistics = [Checkpoint(stages.get(stage).path(STATISTICS)) for stage in batchnorm_stages.exclusive(stages)]
    return {**compressed_of(stages), **{name: each[name] for each in statistics for name in each}}


def compressed_of(stages: Stages) -> dict[str, Delta]:
    """v_t of every parameter."""
    stored = Checkpoint(stages.get(stages.exclusive).path("exclusive.safetensors"))
    if stages.is_elected:
        return dict(task_vectors(stored))
    return read_back(stored)


def read_by_router(stages: Stages, split: str, tasks: list[Task]) -> list[Any]:
    """What the router reads of each task's rows of a split: the shared encoder's mean token states (rows, d), or token ids."""
    if not reads_tokens(stages):
        (stage,) = read(stages, split)
        features = features_of(stages, stage, tasks)
        return [features[task.name]["mean"] for task in tasks]
    special = set(cast(SequenceClassifierBackbone, backbone_of(stages)).tokenizer.all_special_ids)
    return [
        [
            [token for token in row["input_ids"] if token not in special]
            for row in inputs_of(stages, task, split, None if split == TEST else stages.run.router.rows).rows
        ]
        for task in tasks
    ]


def routing_weights(stages: Stages, tasks: list[Task]) -> dict[str, Tensor]:
    """w(x) of every test row, by task: (rows, T); of emr all of it on the top task, whose model a row gets."""
    if not stages.routing:
        return {
            task.name: oracle_weights(index, len(task.splits[TEST]), len(tasks)) for index, task in enumerate(tasks)
        }
    weights = router_weights(stages, tasks)
    return {name: one_hot(w) for name, w in weights.items()} if stages.is_elected else weights


def router_weights(stages: Stages, tasks: list[Task]) -> dict[str, Tensor]:
    """What the trained router says of every test row, by task: (rows, T)."""
    router = trained_router(stages)
    given = read_by_router(stages, TEST, tasks)
    return {task.name: weights_by(router, stages, rows) for task, rows in zip(tasks, given, strict=True)}


def trained_router(stages: Stages) -> Any:
    """The job's router, trained."""
    kind = routers[stages.run.router.name].load()
    return kind.of_state(load_file(stages.get(stages.router).path("router.safetensors")))


def weights_by(router: Any, stages: Stages, rows: Any) -> Tensor:
    """w(x), (rows, T), of what ``read_by_router`` gives of a task's rows."""
    return router.weights(*(padded(rows) if reads_tokens(stages) else (rows,)))
