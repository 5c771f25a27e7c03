"""timm's image encoders, vision transformers and convolutional ones alike, with a classification head a task."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from timm.data import create_transform
from torch import Tensor, nn

from twin_merging import checkpoints
from twin_merging.backbones.features import Features, Head
from twin_merging.backbones.image_classifier import ImageClassifierBackbone
from twin_merging.backbones.sources import read_config
from twin_merging.backbones.timm_model import TimmConfig, TimmForImageClassification
from twin_merging.backbones.timm_source import Start, is_timms, published, start_of
from twin_merging.checkpoints import Checkpoint
from twin_merging.errors import UserError
from twin_merging.tasks.base import Task


class TimmBackbone(ImageClassifierBackbone):
    """Images as timm resizes and cuts them; heads read the pooled features (``pooled``), routers the mean of the token states, or
    of a convolutional encoder the pooled features too (``mean``)."""

    classifier = TimmForImageClassification

    # --- rows ---------------------------------------------------------------------------------------------------------

    @cached_property
    def side(self) -> int:
        return int(self._start.seen["input_size"][1])

    def pixels(self, images: list[Image]) -> Tensor:
        return torch.stack([self._transform(image) for image in images])

    def save_reader(self, folder: Path) -> None:
        """Nothing more: it is in the model's config.json."""

    def head_input(self, output: Any) -> Features:
        return {"pooled": output.pooler_output.float()}

    # --- models -------------------------------------------------------------------------------------------------------

    def load(
        self, source: Path, num_labels: int, regression: bool = False, new_head: bool = False, **settings: float
    ) -> TimmForImageClassification:
        """Encoder and head in float32: θ₀ with a new head, an expert that was fine-tuned from it here, or a published one."""
        if source == self.folder:
            model = self._model(copy.deepcopy(self._start.encoder), num_labels, regression)
            model.draw_head()
        elif is_timms(source):
            model = self._published(source, num_labels, regression)
        else:
            model = self._own(source, num_labels, regression)
        model.to(self.device)  # type: ignore[arg-type]
        return model

    def new_expert(self, task: Task, dropout: float | None = None) -> TimmForImageClassification:
        model = self.load(self.folder, task.num_labels, task.kind == "regression", new_head=True)
        if dropout is not None:
            set_dropout(model.encoder, dropout)
        return model

    def about(self, source: Path) -> dict[str, Any]:
        config = read_config(source)
        if not is_timms(source):
            return config
        names = config.get("label_names") or config.get("pretrained_cfg", config).get("label_names") or ()
        return {"model_type": TimmConfig.model_type, "id2label": dict(enumerate(names))}

    def head(self, state: Mapping[str, Tensor], num_labels: int) -> Head:
        model = self._model(nn.Identity(), num_labels)
        model.task_head.load_state_dict({name.removeprefix("task_head."): tensor for name, tensor in state.items()})
        return Head(model).eval().to(self.device)

    def _published(self, source: Path, num_labels: int, regression: bool) -> TimmForImageClassification:
        """An expert in timm's form, whose own classifier is its head."""
        found = published(source, self.options.image_size)
        self._check_same(str(source), found.architecture, found.model_args)
        head = found.classifier
        if head is None or head.out_features != num_labels:
            raise UserError(
                "an expert's classifier is one linear layer of the pooled features, an output a class", key=str(source),
                found="none" if head is None else f"{head.out_features} outputs", expected=f"{num_labels} outputs",
            )  # fmt: skip
        model = self._model(found.encoder, num_labels, regression)
        weights = head.state_dict()
        model.task_head.load_state_dict({"bias": torch.zeros(num_labels), **weights})
        return model

    def _own(self, source: Path, num_labels: int, regression: bool) -> TimmForImageClassification:
        """An expert as this class saves it."""
        config = read_config(source)
        self._check_same(str(source), config.get("architecture", ""), config.get("model_args") or {})
        model = self._model(copy.deepcopy(self._start.encoder), num_labels, regression)
        state = dict(Checkpoint(source))
        checkpoints.check(state, model.state_dict(), str(source))
        model.load_state_dict(state)
        told = TimmConfig.from_dict(config)
        model.config.id2label, model.config.label2id = told.id2label, told.label2id
        return model

    def _check_same(self, where: str, architecture: str, model_args: Mapping[str, Any]) -> None:
        """Refuse what may have tensors of the base's shapes and computes otherwise with them. Files of other versions of timm
        name fewer arguments."""
        own, base = ({"architecture": kind, **given} for kind, given in ((architecture, model_args), self._start[2:4]))
        for name, value in own.items():
            if base.get(name, value) != value:
                raise UserError(
                    "an expert of another architecture than the base's", key=where, found=f"{name} {value}",
                    expected=f"{name} {base[name]}", hint="experts.source and backbone.pretrained must be of one architecture",
                )  # fmt: skip

    def _model(self, encoder: Any, num_labels: int, regression: bool = False) -> TimmForImageClassification:
        """``encoder`` with a head that is still to be filled."""
        start = self._start
        config = TimmConfig(
            architecture=start.architecture, model_args=start.model_args, seen=start.seen, hidden_size=start.width,
            num_hidden_layers=start.layers, problem_type="regression" if regression else "single_label_classification",
        )  # fmt: skip
        config.num_labels = num_labels
        for module in encoder.modules():
            if hasattr(module, "fused_attn"):  # whose backward pass takes several times as long on a CPU
                module.fused_attn = self.device.type != "cpu"
        return TimmForImageClassification(config, encoder)

    @cached_property
    def _start(self) -> Start:
        return start_of(self.folder, self.options.image_size)

    @cached_property
    def _tokens(self) -> int:
        return self._start.tokens

    @cached_property
    def _transform(self) -> Any:
        """What timm makes of an image before its numbers are scaled: bytes of (3, S, S)."""
        return create_transform(**self._start.seen, normalize=False)

    @cached_property
    def _scale(self) -> tuple[Tensor, Tensor]:
        mean, deviation = (torch.tensor(self._start.seen[name]).view(3, 1, 1) * 255.0 for name in ("mean", "std"))
        return mean, deviation


def set_dropout(encoder: Any, probability: float) -> None:
    """Give every dropout of a model of timm's this probability: its layers', and the rates that some read as a number."""
    for module in encoder.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = probability
        if isinstance(getattr(module, "drop_rate", None), float | int):
            module.drop_rate = probability
