"""CLIP image encoders that others fine-tuned, for the base that they were fine-tuned from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from open_clip.model import resize_pos_embed
from torch import Tensor

from twin_merging import checkpoints
from twin_merging.backbones import clip_names, clip_transformers
from twin_merging.backbones.clip_source import CONFIG
from twin_merging.errors import UserError

POSITIONS = "positional_embedding"
DEFAULTS = {"head_width": 64, "eps": 1e-5}
"""open_clip's, of what a ``vision_cfg`` need not say."""


def image_tower(folder: Path, model: Mapping[str, Any], start: Mapping[str, Tensor], resize: bool) -> dict[str, Tensor]:
    """An expert's image encoder by the base's names. What it does not have of the projection is the base's: it was frozen.

    Args:
        folder: its files, as transformers or open_clip saved them; a configuration that is there has to be the base's.
        model: of the base, the arguments of ``open_clip.CLIP``.
        start: the base's image encoder.
        resize: whether the base's positions were resized to the images, so that the expert's have to be.

    Raises:
        UserError: if it is of another architecture, or a tensor is missing or not finite.
    """
    _check_architecture(folder, model)
    found = clip_names.image_encoder(folder)
    if resize and POSITIONS in found:
        found[POSITIONS] = _resized(found[POSITIONS], model["vision_cfg"])
    found.setdefault("proj", start["proj"])
    checkpoints.check(found, start, str(folder))
    return found


def _resized(positions: Tensor, vision: Mapping[str, Any]) -> Tensor:
    side = vision["image_size"] // vision["patch_size"]
    state = {f"visual.{POSITIONS}": positions}
    resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=(side, side))))
    return state[f"visual.{POSITIONS}"]


def _check_architecture(folder: Path, model: Mapping[str, Any]) -> None:
    """Refuse what has tensors of the base's shapes and computes otherwise with them."""
    told = _told(folder)
    if told is None:
        return
    own, base = _computes(*told), _computes(model["vision_cfg"], bool(model.get("quick_gelu")))
    for what, value in own.items():
        if value != base[what]:
            raise UserError(
                "an expert of another architecture than the base's", key=str(folder), found=f"{what} {value}", expected=f"{what} {base[what]}",
                hint="experts.source and backbone.pretrained must be of one architecture",
            )  # fmt: skip


def _told(folder: Path) -> tuple[Mapping[str, Any], bool] | None:
    """The folder's ``vision_cfg`` and whether it has the quick GELU; None if no configuration says so."""
    if not (folder / CONFIG).is_file():
        return clip_transformers.image_encoder(folder)
    try:
        content = json.loads((folder / CONFIG).read_text())["model_cfg"]
        return content["vision_cfg"], bool(content.get("quick_gelu"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot be read ({error})", key=str(folder / CONFIG), expected='{"model_cfg": {...}}'
        ) from error


def _computes(vision: Mapping[str, Any], quick: bool) -> dict[str, Any]:
    """What its tensors' shapes do not show."""
    return {
        "heads": vision["width"] // vision.get("head_width", DEFAULTS["head_width"]),
        "activation": "quick_gelu" if quick else "gelu",
        "layer_norm_eps": (vision.get("norm_kwargs") or {}).get("eps", DEFAULTS["eps"]),
    }
