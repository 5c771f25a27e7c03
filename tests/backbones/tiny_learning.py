"""What AdaMerging's entropies are computed from, in float64 and without the stages that would make it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from twin_merging.backbones.image_classifier import ImageClassifierBackbone
from twin_merging.pipeline import data_methods
from twin_merging.tasks.base import Task

RUN = SimpleNamespace(run=SimpleNamespace(seed=0))


def in_doubles(backbone: ImageClassifierBackbone) -> ImageClassifierBackbone:
    """The same backbone with batches of float64."""
    collate = backbone.collate
    backbone.collate = lambda rows: {name: tensor.double() for name, tensor in collate(rows).items()}
    return backbone


def encoder_of(backbone: ImageClassifierBackbone, tasks: list[Task], monkeypatch: pytest.MonkeyPatch):
    """An encoder, and the heads of all tasks, which ``data_methods`` finds from now on beside this backbone and its inputs."""
    models = [backbone.new_expert(task) for task in tasks]
    heads = {task.name: backbone.head(backbone.head_state(model), 3) for task, model in zip(tasks, models, strict=True)}
    for name, of in {
        "backbone_of": lambda stages: backbone, "heads_of": lambda stages: heads,
        "inputs_of": lambda stages, task, split: backbone.inputs(task, split),
    }.items():  # fmt: skip
        monkeypatch.setattr(data_methods, name, of)
    return backbone.encoder(models[0]).double().eval(), heads
