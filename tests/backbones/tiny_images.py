"""Tiny random image encoders of real classes, saved as published ones are, and tasks of images that are told apart by colour."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from twin_merging.backbones.image_classifier import ImageClassifierBackbone
from twin_merging.config import ImageClassifier
from twin_merging.tasks.base import SPLITS, Split, Task

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
COLOURS = ("red", "green", "blue")


def save_encoder(folder: Path, kind: str, seed: int = 0) -> Path:
    """A ``dinov2`` or a ``vit`` with its image processor."""
    torch.manual_seed(seed)
    if kind == "dinov2":
        model = Dinov2ForImageClassification(Dinov2Config(**SIZE, mlp_ratio=2, num_labels=2))
    else:
        model = ViTForImageClassification(ViTConfig(**SIZE, intermediate_size=64, num_labels=2))
    model.save_pretrained(folder)
    processor = ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]
    )
    processor.save_pretrained(folder)
    return folder


def backbone_of(folder: Path, **options) -> ImageClassifierBackbone:
    return ImageClassifierBackbone(
        ImageClassifier(pretrained=str(folder), **options), folder, torch.device("cpu"), autocast=False
    )


def png(array: np.ndarray) -> bytes:
    """An image's bytes as a file has them."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def colour_task(name: str, rows: int = 24, seed: int = 0) -> Task:
    """Noise of the size 20 x 24 in which one colour is strongest."""
    chance, images, splits = np.random.default_rng(seed), {}, {}
    for split in SPLITS:
        keys, labels = [], []
        for row in range(rows):
            label = row % len(COLOURS)
            array = chance.integers(0, 128, (20, 24, 3))
            array[..., label] += 127
            data = png(array.astype(np.uint8))
            key = hashlib.sha256(data).hexdigest()
            images[key] = data
            keys.append((key,))
            labels.append(label)
        splits[split] = Split(keys, labels)
    return Task(name, "single_label", COLOURS, None, "accuracy", splits, {}, images=images)


def save_colours(place: Path) -> Path:
    """``vision/{a,b}`` below a folder as parquet files: a's rows are 48, 24 and 24, of which b lacks one that is no image."""
    for number, name in enumerate("ab"):
        folder = place / "vision" / name
        folder.mkdir(parents=True)
        names = COLOURS[number:] + COLOURS[:number]
        (folder / "labels.json").write_text(json.dumps({"names": names}))
        task = colour_task(name, 48, seed=number)
        for split, count in (("train", 48), ("validation", 24), ("test", 24)):
            rows = task.splits[split]
            images = [{"bytes": task.images[key], "path": None} for (key,) in rows.texts[:count]]
            if (name, split) == ("b", "train"):
                images[5] = {"bytes": b"no image", "path": None}
            labels = [names.index(COLOURS[label]) for label in rows.labels[:count]]
            pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": labels}), folder / f"{split}.parquet")
    return place
