"""Tiny random image encoders with BatchNorm, saved as published ones are."""

from __future__ import annotations

from pathlib import Path

import torch
from backbones.tiny_images import save_encoder
from transformers import ResNetConfig, ResNetForImageClassification

SIZE = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "hidden_act": "relu"}


def save_resnet(folder: Path, seed: int = 0) -> Path:
    """A ResNet, with statistics of no data, and an image processor for images of the size 32 x 32."""
    save_encoder(folder, "vit", seed)
    torch.manual_seed(seed)
    ResNetForImageClassification(ResNetConfig(**SIZE, num_labels=2)).save_pretrained(folder)
    return folder
