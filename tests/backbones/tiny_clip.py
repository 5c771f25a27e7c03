"""A tiny random CLIP of open_clip's own classes, saved as its hub repositories are."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from twin_merging.backbones.clip import ClipBackbone
from twin_merging.backbones.clip_source import CONFIG, WEIGHTS
from twin_merging.config import Clip

MODEL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 2},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


def save_clip(folder: Path, seed: int = 0, preprocess: dict | None = None, **model) -> Path:
    """Both towers, drawn wide enough that sentences and images differ."""
    given = {**MODEL, **model}
    torch.manual_seed(seed)
    whole = open_clip.CLIP(**json.loads(json.dumps(given)))
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(10 if "token_embedding" in name else 2)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in whole.state_dict().items()}, folder / WEIGHTS)
    content = {"model_cfg": given, "preprocess_cfg": {**PREPROCESS, **(preprocess or {})}}
    (folder / CONFIG).write_text(json.dumps(content))
    return folder


def backbone_of(folder: Path, **options) -> ClipBackbone:
    return ClipBackbone(Clip(pretrained=str(folder), **options), folder, torch.device("cpu"), autocast=False)


def save_in_transformers_form(folder: Path, seed: int = 0, **vision) -> CLIPModel:
    """A CLIP of transformers' own classes with no number at its usual value, saved in ``folder`` as it publishes them.

    Args:
        vision: of the image encoder's configuration; ``hidden_act`` is also the text encoder's.
    """
    torch.manual_seed(seed)
    act = {"hidden_act": vision.get("hidden_act", "quick_gelu")}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    images = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={**text, **act, "max_position_embeddings": 32},
        vision_config={**images, "image_size": 32, "patch_size": 8, **vision}, projection_dim=24,
    )  # fmt: skip
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    side = {"height": 32, "width": 32}
    CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size=side, image_mean=PREPROCESS["mean"], image_std=PREPROCESS["std"]
    ).save_pretrained(folder)
    return model
