"""Tiny random image encoders of timm's own architectures, saved by timm as those of the hub are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf

from twin_merging.backbones.timm_classifier import TimmBackbone
from twin_merging.config import Timm

SIDE = 32
VIT = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 2}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", VIT), "resnet": ("test_resnet", {}), "efficientnet": ("test_efficientnet", {}),
    "convnext": ("test_convnext", {}), "averaging_vit": ("test_vit2", {"img_size": SIDE}),
}  # fmt: skip
"""The architecture, and what of it is made smaller."""


def make(kind: str, seed: int = 0, num_classes: int = 3, **more: Any) -> Any:
    """A model with no number at its usual value, running statistics included."""
    name, arguments = KINDS.get(kind, (kind, {}))
    torch.manual_seed(seed)
    seen = {"input_size": (3, SIDE, SIDE), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    model = timm.create_model(
        name, num_classes=num_classes, pretrained_cfg_overlay={**seen, "num_classes": num_classes}, **{**arguments, **more}
    )  # fmt: skip
    with torch.no_grad():
        for tensor_name, tensor in model.state_dict().items():
            if tensor_name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand_like(tensor))
            elif tensor.is_floating_point():
                tensor.add_(0.05 * torch.randn_like(tensor))
    return model.eval()


def save_timm(
    folder: Path, kind: str, seed: int = 0, num_classes: int = 3, config: dict | None = None, **more: Any
) -> Any:
    """Save such a model, and return it.

    Args:
        config: entries of config.json that are added.
    """
    model = make(kind, seed, num_classes, **more)
    save_for_hf(model, folder, model_config=config, safe_serialization=True)
    return model


def backbone_of(folder: Path, **options: Any) -> TimmBackbone:
    return TimmBackbone(Timm(pretrained=str(folder), **options), folder, torch.device("cpu"), autocast=False)
