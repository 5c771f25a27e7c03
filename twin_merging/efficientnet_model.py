"""An EfficientNet-Lite0 that PyTorch pickled as a folder in timm's form, whose weights can be merged and fine-tuned."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twin_merging.errors import UserError

REPEATS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of each stage (Tan & Le, 2019, table 1); the file numbers them through."""
ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
INVERTED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
CONFIG: dict[str, Any] = {  # tf_*: padding as TensorFlow's SAME, and ε = 1e-3 in BatchNorm
    "architecture": "tf_efficientnet_lite0",
    "num_classes": 1000,
    "num_features": 1280,
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "num_classes": 1000,
        "pool_size": [7, 7],
        "first_conv": "conv_stem",
        "classifier": "classifier",
        "license": "apache-2.0",
    },
}


def convert(file: Path, folder: Path) -> None:
    """Write config and weights (safetensors, float32), the classifier of ImageNet's 1,000 classes included.

    The pickle is read as tensors alone: no code of the file is run.

    Args:
        file: a state dict by the names of the first EfficientNet in PyTorch: ``_blocks.0._depthwise_conv.weight``.
        folder: which is made.

    Raises:
        UserError: if the file cannot be read as such, or a weight is missing, superfluous, of a wrong shape or not finite.
    """
    import torch
    from safetensors.torch import save_file

    from twin_merging.backbones.timm_source import published

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"no state dict that can be read ({reason})", key=str(file)) from error
    if not isinstance(state, Mapping):
        raise UserError("no state dict", key=str(file), found=type(state).__name__)
    weights = timm_names(state, str(file))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1), encoding="utf-8")
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    published(folder, None)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes for its owner alone, and an asset folder may serve a group


def timm_names(state: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A state dict of EfficientNet-Lite0 under the names of timm's ``tf_efficientnet_lite0``.

    Raises:
        UserError: naming ``key`` for a name that is no part of it.
    """
    places = [f"blocks.{stage}.{place}" for stage, repeats in enumerate(REPEATS) for place in range(repeats)]
    found = {}
    for name, value in state.items():
        part, _, kind = name.rpartition(".")
        outer, _, layer = part.rpartition(".")
        number = outer.removeprefix("_blocks.")
        if not outer and layer in ENDS:
            found[f"{ENDS[layer]}.{kind}"] = value
            continue
        inner = SEPARABLE if number == "0" else INVERTED
        if not number.isdecimal() or int(number) >= len(places) or layer not in inner:
            raise UserError("no weights of an EfficientNet-Lite0", key=key, found=name)
        found[f"{places[int(number)]}.{inner[layer]}.{kind}"] = value
    return found
