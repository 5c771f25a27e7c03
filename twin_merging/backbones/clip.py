"""CLIP by open_clip: the image encoder merges, the text encoder makes each task's head."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import resize_pos_embed
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPImageProcessor

from twin_merging import checkpoints
from twin_merging.backbones.clip_experts import image_tower
from twin_merging.backbones.clip_model import ClipClassifier, ClipConfig
from twin_merging.backbones.clip_names import from_transformers
from twin_merging.backbones.clip_source import SEED, Architecture, architecture_of
from twin_merging.backbones.encoders import Batch
from twin_merging.backbones.features import Features, Head
from twin_merging.backbones.image_classifier import ImageClassifierBackbone
from twin_merging.backbones.loading import load_model
from twin_merging.backbones.sources import read_config
from twin_merging.backbones.zero_shot import templates_of, zero_shot_head
from twin_merging.checkpoints import Checkpoint
from twin_merging.errors import UserError
from twin_merging.tasks.base import Task

RESAMPLE = {"bicubic": 3, "bilinear": 2}  # PIL's numbers


class ClipBackbone(ImageClassifierBackbone):
    """Images as open_clip resizes and cuts them; heads read the image's embedding (``pooled``), routers the mean of the
    patches' last states before the projection (``mean``)."""

    classifier = ClipClassifier

    # --- rows ---------------------------------------------------------------------------------------------------------

    @cached_property
    def architecture(self) -> Architecture:
        """The model that the options name."""
        return architecture_of(self.options, self.folder)

    @cached_property
    def processor(self) -> Any:
        seen = self._preprocess
        side = {"height": seen["size"], "width": seen["size"]}
        cut = seen["resize_mode"] == "shortest"
        return CLIPImageProcessor(
            size={"shortest_edge": seen["size"]} if cut else side, do_center_crop=cut, crop_size=side,
            resample=RESAMPLE[seen["interpolation"]], image_mean=list(seen["mean"]), image_std=list(seen["std"]),
        )  # fmt: skip

    def pixels(self, images: list[Image]) -> Tensor:
        make = self._transform
        return torch.stack([make(image) for image in images]).mul(255).round().to(torch.uint8)

    def head_input(self, output: Any) -> Features:
        return {"pooled": output.pooler_output.float()}

    def embedded(self, encoder: nn.Module, batch: Batch) -> Features:
        return self.head_input(encoder(**batch, tokens=False))

    # --- models -------------------------------------------------------------------------------------------------------

    def load(
        self, source: Path, num_labels: int, regression: bool = False, new_head: bool = False, **settings: float
    ) -> ClipClassifier:
        """Encoder and head in float32: θ₀, whose head is zero, or an expert that was fine-tuned from it."""
        if regression:
            raise _no_classes("a regression")
        if source == self.folder:
            return self._with_head(torch.zeros(num_labels, self.architecture.model["embed_dim"]))
        model, report = load_model(
            ClipClassifier, source, False, num_labels=num_labels, problem_type="single_label_classification",
            dtype=torch.float32, **settings,
        )  # fmt: skip
        self._check_report(model, report, source, new_head=False)
        return model.to(self.device)

    def new_expert(self, task: Task, dropout: float | None = None) -> ClipClassifier:
        """θ₀ with the zero-shot head of ``task``, for fine-tuning."""
        if dropout:
            raise UserError("CLIP has no dropout", key="finetune.backbone_dropout", found=dropout, expected="null or 0")
        return self._with_head(self._zero_shot(task))

    def foreign_expert(self, source: Path, task: Task) -> ClipClassifier | None:
        if (source / "config.json").is_file() and read_config(source).get("model_type") == ClipConfig.model_type:
            return None
        resized = self.options.image_size is not None
        tower = image_tower(source, self.architecture.model, self._start, resized)
        return self._with_head(self._zero_shot(task), tower)

    def _zero_shot(self, task: Task) -> Tensor:
        """The head that text makes for ``task``, (classes, d)."""
        if task.kind != "single_label":
            raise _no_classes(f"{task.name}, a {task.kind}")
        templates = templates_of(task.name, self.options.templates)
        determined_by = {"templates": templates, "classes": list(task.class_names)}
        return self.remember("text head", task.name, determined_by, lambda: self._text_head(task, templates))

    def _text_head(self, task: Task, templates: Sequence[str]) -> Tensor:
        text = self.architecture.model["text_cfg"]
        tokenize = open_clip.SimpleTokenizer(
            context_length=text.get("context_length", 77), **text.get("tokenizer_kwargs") or {}
        )
        model = self._whole().to(self.device)
        return zero_shot_head(model, tokenize, task.class_names, templates, f"zero-shot head: {task.name}").cpu()

    def head(self, state: Mapping[str, Tensor], num_labels: int) -> Head:
        with torch.device("meta"):
            head = Head(ClipClassifier(self._config(num_labels)))
        head.model.load_state_dict(dict(state), assign=True)
        return head.eval().to(self.device)

    def _config(self, num_labels: int) -> ClipConfig:
        model = copy.deepcopy(self.architecture.model)
        quick_gelu = bool(model.get("quick_gelu"))
        config = ClipConfig(
            embed_dim=model["embed_dim"],
            vision=model["vision_cfg"],
            quick_gelu=quick_gelu,
            problem_type="single_label_classification",
        )
        config.num_labels = num_labels
        return config

    def _with_head(self, weight: Tensor, tower: Mapping[str, Tensor] | None = None) -> ClipClassifier:
        """θ₀, or another image encoder, with this head, (classes, d)."""
        with torch.device("meta"):
            model: Any = ClipClassifier(self._config(len(weight)))
        start = {f"encoder.visual.{name}": tensor.clone() for name, tensor in (tower or self._start).items()}
        model.load_state_dict({**start, "head.weight": weight.clone()}, assign=True)
        return model.to(self.device)

    @cached_property
    def _start(self) -> dict[str, Tensor]:
        """θ₀ by open_clip's names."""
        return self._whole().visual.state_dict()

    def _whole(self) -> Any:
        """CLIP with both encoders, in float32 on the CPU; random weights are the same every time.

        Raises:
            UserError: if its weights are damaged, not finite, or not those of the architecture.
        """
        model, _, weights = copy.deepcopy(self.architecture)
        kind = open_clip.CustomTextCLIP if model.pop("custom_text", False) else open_clip.CLIP
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(SEED)
                whole = kind(**model)
            if weights is not None and weights.is_dir():
                state = from_transformers(Checkpoint(weights))
                resize_pos_embed(state, whole)
                whole.load_state_dict(state)
            elif weights is not None:
                open_clip.load_checkpoint(whole, str(weights))
        except (OSError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"cannot be loaded ({reason})", key=str(weights or self.options.model)) from error
        for name, tensor in whole.state_dict().items():
            checkpoints.check_finite(tensor, f"{weights}: {name}")
        return whole.eval().requires_grad_(False)

    @cached_property
    def _preprocess(self) -> dict[str, Any]:
        """open_clip's ``preprocess_cfg``, complete, for the size that the model sees."""
        found = merge_preprocess_dict(PreprocessCfg(), self.architecture.preprocess)
        return {**found, "size": self.architecture.model["vision_cfg"]["image_size"]}

    @cached_property
    def _transform(self) -> Any:
        """What open_clip makes of an image, from 0 to 1: (3, S, S)."""
        seen = self._preprocess
        return open_clip.image_transform(
            seen["size"], is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3, resize_mode=seen["resize_mode"],
            interpolation=seen["interpolation"], fill_color=seen["fill_color"],
        )  # fmt: skip


def _no_classes(found: str) -> UserError:
    return UserError("zero-shot heads are of classes", key="tasks.names", found=found, expected="classification tasks")
