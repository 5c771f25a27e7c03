"""Options of what experts are made of: backbone, tasks, fine-tuning, and which parameters merge."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from twin_merging.config.domains import IMAGES
from twin_merging.config.option import TINY, option
from twin_merging.config.registries import backbones, finetunings, task_sources

PIXELS = "16GB"
"""SVHN's 99,289 images of 224 x 224 take up 15."""
BATCHNORM_ROWS = 256
BATCHNORM = (
    "training images of each task by which BatchNorm's statistics are found of experts and of merged models, at most"
)
BATCHNORM_BATCH = 64
"""Rows of a batch, all tasks' together: more or fewer would give other statistics."""
AUGMENTATIONS = ("none", "crop", "crop_flip")
AUGMENT = (
    "what training sees of an image: what evaluation does, or each epoch another crop of it, which may be mirrored"
)


@dataclass
class SequenceClassifier:
    """An encoder of the Hugging Face hub, of a folder or of the offline assets, with one head a task."""

    name: str = "sequence_classifier"
    pretrained: str = option("???", "asset:NAME, a folder, or a hub name")
    revision: str | None = option(None, "hub commit, branch or tag; a commit pins the weights")
    max_length: int = option(128, "tokens an input is cut to", low=2)
    trust_remote_code: bool = option(False, "run modelling code that comes with the weights")


@dataclass
class ImageEncoder:
    """What image encoders have in common whose heads are fine-tuned, one a task."""

    name: str = "???"
    pretrained: str = option("???", "asset:NAME, a folder, or a hub name")
    revision: str | None = option(None, "hub commit, branch or tag; a commit pins the weights")
    image_size: int | None = option(None, "side of the square that the model sees, in pixels; null: its own", low=8)
    pixels: str | None = option(
        PIXELS,
        "disk that a task's images may take up decoded, for all passes; a larger task's are decoded anew; null: none",
    )
    batchnorm_rows: int = option(BATCHNORM_ROWS, BATCHNORM, low=2)
    augment: str = option("none", AUGMENT, choices=AUGMENTATIONS)
    domain: ClassVar[str] = IMAGES


@dataclass
class ImageClassifier(ImageEncoder):
    """An image encoder of the Hugging Face hub, of a folder or of the offline assets, with one head a task."""

    name: str = "image_classifier"
    trust_remote_code: bool = option(False, "run modelling code that comes with the weights")


@dataclass
class Clip:
    """CLIP's image encoder in open_clip's code, with zero-shot heads that its text encoder makes and no training changes."""

    name: str = "clip"
    model: str = option("ViT-B-32", "open_clip's name of the architecture; a folder or hub name brings its own")
    pretrained: str | None = option("openai", "a tag of open_clip's, a folder, or a hub name; null: random weights")
    revision: str | None = option(None, "hub commit, branch or tag; a commit pins the weights")
    image_size: int | None = option(None, "side of the square that the model sees, in pixels; null: its own", low=8)
    pixels: str | None = option(
        PIXELS,
        "disk that a task's images may take up decoded, for all passes; a larger task's are decoded anew; null: none",
    )
    augment: str = option("none", AUGMENT, choices=AUGMENTATIONS)
    templates: dict[str, list[str]] | None = option(
        None, "by task, sentences with {} for the class; of other tasks CLIP's own, or 'a photo of a {}.'"
    )
    domain: ClassVar[str] = IMAGES
    trust_remote_code: ClassVar[bool] = False


@dataclass
class Timm(ImageEncoder):
    """An image encoder of timm's, convolutional or not, of the hub, of a folder or of the offline assets, in timm's form, with one head a
    task."""

    name: str = "timm"
    trust_remote_code: ClassVar[bool] = False


@dataclass
class Rows:
    """Rows of each split, at most; null takes all there are. What a source does not split itself is split by seed."""

    train: int | None = option(None, "rows to fine-tune on", low=1)
    validation: int | None = option(None, "rows of the training set held out: epochs, λ and router", low=1)
    test: int | None = option(None, "rows to evaluate on", low=1)


@dataclass
class Tasks:
    """Tasks by name from one source."""

    name: str = "offline_text"
    names: list[str] = option([], "which tasks, in this order")
    rows: Rows = field(default_factory=Rows)
    train_rows: dict[str, int] | None = option(None, "by task, in place of rows.train", low=1)
    limit: int | None = option(None, "rows of any split, at most: for a quick look", low=1)
    split_seed: int = option(0, "seed of the sampling and of the splits", low=0)
    unseen: list[str] = option([], "tasks that are evaluated though no expert of theirs is merged or routed to")
    order: str = option(
        "seeded", "of a split's rows: shuffled by seed with each class evenly spread, or as the source has them",
        choices=("seeded", "source"),
    )  # fmt: skip


@dataclass
class VisionTasks(Tasks):
    """Image tasks by name."""

    name: str = "vision"
    corrupt: float = option(0.01, "share of a split's images that may be unreadable, and are left out", low=0, high=1)
    held_out: int | None = option(
        None, "rows of train, at most, that become validation rows where a source has none; null: a tenth of all", low=1
    )
    hub: str | None = option(
        None,
        "a folder of NAME.yaml files that describe more data sets of the hub, as tasks/hub_images of the package does",
    )
    domain: ClassVar[str] = IMAGES


@dataclass
class FullFineTuning:
    """Fine-tune all parameters; the epoch that is best on validation is kept."""

    name: str = "full"
    epochs: int = option(10, "passes over the training rows", low=1)
    task_epochs: dict[str, int] | None = option(None, "by task, in place of epochs; joint training has epochs", low=1)
    lr: float = option(1e-5, "learning rate of the encoder", low=TINY, high=1)
    head_lr: float | None = option(None, "learning rate of the new head; null: lr", low=TINY, high=1)
    batch_size: int = option(64, "rows a step", low=1)
    weight_decay: float = option(0.01, "AdamW weight decay", low=0, high=1)
    warmup: float = option(0.06, "share of the steps that warm up", low=0, high=1)
    backbone_dropout: float | None = option(
        None, "dropout in the backbone while training; null: its own", low=0, high=1
    )
    scheduler: str = option("linear", "learning-rate schedule", choices=("linear", "cosine", "constant_with_warmup"))
    workers: int | None = option(
        None,
        "processes that decode images ahead of training; null: as many as pay, none where nothing is decoded",
        low=0,
        high=64,
    )


@dataclass
class LoraFineTuning(FullFineTuning):
    """Fine-tune low-rank adapters ΔW = (α/r)·BA on the linear layers; the head is trained in full."""

    name: str = "lora"
    rank: int = option(32, "r", low=1)
    alpha: int = option(16, "α", low=1)
    dropout: float = option(0.05, "dropout before A", low=0, high=1)
    targets: str = option("all-linear", "all-linear, or a regular expression over module names")


@dataclass
class Experts:
    """Where experts come from: fine-tuned here, or published checkpoints; and what they are known to score."""

    source: str | None = option(None, "folder or hub name[@revision] with {task} in it; null: fine-tune here")
    seed: int | None = option(
        None, "seed of fine-tuning; null: seed. With one given, seed repeats merging and routing alone", low=0, high=2**32 - 1
    )  # fmt: skip
    sources: dict[str, str] | None = option(None, "by task, a folder or hub name[@revision] that goes before source")
    labels: dict[str, list[str]] | None = option(
        None, "by task, the class that each output of a published head stands for, where its config.json names none"
    )
    reference: dict[str, float] | None = option(
        None, "by task, the published score of its expert, in percent", low=-100, high=100
    )
    tolerance: float = option(2.0, "percent points that an expert may be off its reference without a warning", low=0)
    normalize_by: str = option(
        "measured", "what normalized scores are relative to: each expert's own score on the same rows, or reference of every task",
        choices=("measured", "published"),
    )  # fmt: skip


@dataclass
class Parameters:
    """What merges: encoder parameters whose name some ``include`` pattern matches and no ``exclude`` pattern does."""

    include: list[str] = option([".*"], "regular expressions over encoder parameter names")
    exclude: list[str] = option([], "the same; the authors' GLUE code has .*bias.*")


backbones.add(
    "sequence_classifier", SequenceClassifier, "twin_merging.backbones.sequence_classifier:SequenceClassifierBackbone"
)
backbones.add("image_classifier", ImageClassifier, "twin_merging.backbones.image_classifier:ImageClassifierBackbone")
backbones.add("clip", Clip, "twin_merging.backbones.clip:ClipBackbone")
backbones.add("timm", Timm, "twin_merging.backbones.timm_classifier:TimmBackbone")
task_sources.add("offline_text", Tasks, "twin_merging.tasks.offline_text:OfflineText")
task_sources.add("glue", Tasks, "twin_merging.tasks.glue:Glue")
task_sources.add("local_text", Tasks, "twin_merging.tasks.local_text:LocalText")
task_sources.add("vision", VisionTasks, "twin_merging.tasks.vision:Vision")
finetunings.add("full", FullFineTuning, "twin_merging.experts.fine_tuning:full_fine_tuning")
finetunings.add("lora", LoraFineTuning, "twin_merging.experts.lora:lora_fine_tuning")
