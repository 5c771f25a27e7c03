"""Where CLIP's weights come from, and of which architecture they are: a tag of open_clip's, a folder, the hub, or none."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

from twin_merging.backbones import clip_transformers
from twin_merging.backbones.sources import ASSET, Source, locate
from twin_merging.config import Clip
from twin_merging.errors import UserError, unknown

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
FILES = (CONFIG, WEIGHTS)
"""What open_clip's hub repositories hold, and a folder has to unless it is one of transformers'."""
SEED = 0
"""Of random weights."""


class Architecture(NamedTuple):
    """A model of open_clip's.

    Args:
        model: the arguments of ``open_clip.CLIP``.
        preprocess: how images are resized, cut and scaled, where it is not open_clip's usual way.
        weights: open_clip's file, or a folder of transformers'; None for random ones.
    """

    model: dict[str, Any]
    preprocess: dict[str, Any]
    weights: Path | None


class Size(NamedTuple):
    """Of an image encoder: its layers, the largest rank of a matrix, and bytes in float32, about."""

    layers: int
    largest_rank: int
    bytes: int


def is_place(pretrained: str) -> bool:
    """Whether it names a folder or a hub repository; else it is a tag."""
    return "/" in pretrained or pretrained.startswith((ASSET, ".", "~")) or Path(pretrained).is_dir()


def repository(options: Clip) -> str | None:
    """The folder or hub repository that ``pretrained`` names, of a tag the one that open_clip knows; None: random weights.

    Raises:
        UserError: if open_clip knows no such model or tag, or has its weights as a pickle alone.
    """
    if options.pretrained is None or is_place(options.pretrained):
        return options.pretrained
    name, _, file = _tag(options).get("hf_hub", "").rpartition("/")
    if not name or file:
        raise UserError(
            "these weights come as a pickle alone", key="backbone.pretrained", found=f"{options.pretrained} of {options.model}",
            expected=f"a tag whose hub repository has {WEIGHTS}, or a folder that has it beside {CONFIG}",
        )  # fmt: skip
    return name


def files_of(options: Clip) -> tuple[str, ...]:
    """Of the repository: a tag's has open_clip's files, one that is named by itself may have transformers'."""
    named = options.pretrained is not None and is_place(options.pretrained)
    return (*FILES, *clip_transformers.FILES) if named else FILES


def locate_clip(options: Clip, asset_folder: Path, mirror: Path | None) -> Source:
    """The model's folder, fetched if need be, and what identifies θ₀; random weights are identified by model and seed.

    Raises:
        UserError: if it is not to be had, or not of an architecture that can be merged.
    """
    place = repository(options)
    if place is None:
        source = Source(Path(), {"random": options.model, "seed": SEED})
    else:
        source = locate(place, options.revision, asset_folder, patterns=files_of(options), mirror=mirror)
    architecture_of(options, source.folder)
    told = {"model": options.model} if place is not None and place != options.pretrained else {}
    resized = {} if options.image_size is None else {"image_size": options.image_size}
    return Source(source.folder, {**source.identity, **told, **resized})


def architecture_of(options: Clip, folder: Path) -> Architecture:
    """The model that the options name; ``folder`` has its weights, if it is pre-trained.

    Raises:
        UserError: if the folder has no such model, or it has other towers than open_clip's own transformers.
    """
    preprocess: dict[str, Any] = {}
    if options.pretrained is None:
        model = _known(options.model)
    elif is_place(options.pretrained):
        model, preprocess = _read(folder)
    else:
        model, preprocess = _known(options.model), _tag(options)
        model["quick_gelu"] = preprocess.get("quick_gelu", False)
    _check(model, preprocess, str(folder) if options.pretrained and is_place(options.pretrained) else None)
    vision = model["vision_cfg"]
    if options.image_size is not None:
        if options.image_size < vision["patch_size"]:
            raise UserError(
                "smaller than a patch", key="backbone.image_size", found=options.image_size, expected=f"{vision['patch_size']} or more"
            )  # fmt: skip
        vision["image_size"] = options.image_size
    if options.pretrained is None:
        return Architecture(model, preprocess, None)
    if not (folder / CONFIG).is_file() and clip_transformers.is_whole(folder):
        return Architecture(model, preprocess, folder)
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            "no weights of open_clip's", key="backbone.pretrained", found=folder, expected=" and ".join(FILES)
        )
    return Architecture(model, preprocess, folder / WEIGHTS)


def size_of(options: Clip, folder: Path) -> Size:
    """What is known of the image encoder before it is loaded."""
    vision = architecture_of(options, folder).model["vision_cfg"]
    layers, width, ratio = vision["layers"], vision["width"], vision.get("mlp_ratio", 4)
    return Size(layers, width, round(4 * layers * width**2 * (4 + 2 * ratio)))


def _known(name: str) -> dict[str, Any]:
    import open_clip

    if name not in open_clip.list_models():
        raise unknown("backbone.model", name, open_clip.list_models(), "model of open_clip")
    return copy.deepcopy(open_clip.get_model_config(name))


def _tag(options: Clip) -> dict[str, Any]:
    """What open_clip knows of a model's pre-trained weights."""
    import open_clip

    _known(options.model)
    found = open_clip.get_pretrained_cfg(options.model, options.pretrained)
    if not found:
        tags = open_clip.list_pretrained_tags_by_model(options.model)
        raise unknown("backbone.pretrained", options.pretrained, tags, f"tag of {options.model}, and no folder")
    return found


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model and preprocessing of an open_clip_config.json, or of transformers' files."""
    path = folder / CONFIG
    if not path.is_file() and clip_transformers.is_whole(folder):
        return clip_transformers.architecture(folder)
    try:
        content = json.loads(path.read_text())
        return content["model_cfg"], content.get("preprocess_cfg", {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot be read ({error})", key=str(path), expected='{"model_cfg": {...}, "preprocess_cfg": {...}}',
            hint="or config.json of transformers' CLIPModel; image encoders that are not CLIP's are backbone=dinov2_small's",
        ) from error  # fmt: skip


def _check(model: dict[str, Any], preprocess: dict[str, Any], where: str | None) -> None:
    """Refuse what has a BatchNorm or a text encoder of another library, or sees images in another way."""
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    others = {
        "an image encoder of timm": "timm_model_name" in vision,
        "a ResNet, whose BatchNorms do not merge": isinstance(vision.get("layers"), list),
        "an attentional pooler": bool(vision.get("attentional_pool")),
        "a text encoder of the hub": "hf_model_name" in text or "hf_tokenizer_name" in text,
        "a text decoder": "multimodal_cfg" in model,
        "images that are padded": preprocess.get("resize_mode", "shortest") == "longest",
    }
    if found := [words for words, holds in others.items() if holds]:
        raise UserError(
            "only two transformers of open_clip's own can be taken", key=where or "backbone.model", found="; ".join(found),
            expected="such as ViT-B-32, ViT-B-16 or ViT-L-14",
        )  # fmt: skip
