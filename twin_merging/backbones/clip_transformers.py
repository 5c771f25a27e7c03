"""CLIP as transformers saves it, in open_clip's terms: architecture and preprocessing, without its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twin_merging.backbones.sources import read_config
from twin_merging.errors import UserError

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
FILES = (CONFIG, PROCESSOR, "model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
"""What a folder of transformers' has, and a hub repository is asked for."""
WHOLE, IMAGES_ALONE = "clip", "clip_vision_model"
"""``model_type`` of both encoders, and of the image encoder alone."""
VOCABULARY = 49408
INTERPOLATION = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


def is_whole(folder: Path) -> bool:
    """Whether a folder has both of CLIP's encoders as transformers saves them."""
    return (folder / CONFIG).is_file() and read_config(folder).get("model_type") == WHOLE


def architecture(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of ``open_clip.CLIP``, and open_clip's ``preprocess_cfg``, of a folder with both encoders.

    Raises:
        UserError: if open_clip has no such model.
    """
    from transformers import CLIPConfig

    config: Any = _parsed(CLIPConfig, folder)
    vision, text = config.vision_config, config.text_config
    if text.vocab_size != VOCABULARY:
        raise UserError(
            "a vocabulary that is not CLIP's", key=str(folder / CONFIG), found=f"{text.vocab_size} words", expected=VOCABULARY
        )  # fmt: skip
    if vision.hidden_act != text.hidden_act:
        raise UserError(
            "encoders of two activations", key=str(folder / CONFIG), found=f"{vision.hidden_act} and {text.hidden_act}",
            expected="one for both",
        )  # fmt: skip
    model = {
        "embed_dim": config.projection_dim, "quick_gelu": _is_quick(vision, folder), "vision_cfg": _vision(vision),
        "text_cfg": {"context_length": text.max_position_embeddings, "vocab_size": text.vocab_size, **_blocks(text),
                     "heads": text.num_attention_heads},
    }  # fmt: skip
    return model, _preprocessing(folder)


def image_encoder(folder: Path) -> tuple[dict[str, Any], bool] | None:
    """open_clip's ``vision_cfg`` of a folder's image encoder, and whether it has the quick GELU; None if it has none of CLIP's."""
    from transformers import CLIPConfig, CLIPVisionConfig

    kind = read_config(folder).get("model_type") if (folder / CONFIG).is_file() else None
    if kind not in (WHOLE, IMAGES_ALONE):
        return None
    config: Any = _parsed(CLIPConfig, folder).vision_config if kind == WHOLE else _parsed(CLIPVisionConfig, folder)
    return _vision(config), _is_quick(config, folder)


def _vision(config: Any) -> dict[str, Any]:
    heads = {"head_width": config.hidden_size // config.num_attention_heads}
    return {"image_size": config.image_size, "patch_size": config.patch_size, **_blocks(config), **heads}


def _blocks(config: Any) -> dict[str, Any]:
    return {
        "width": config.hidden_size, "layers": config.num_hidden_layers,
        "mlp_ratio": config.intermediate_size / config.hidden_size, "norm_kwargs": {"eps": config.layer_norm_eps},
    }  # fmt: skip


def _is_quick(config: Any, folder: Path) -> bool:
    known = {"quick_gelu": True, "gelu": False}
    if config.hidden_act not in known:
        raise UserError(
            "an activation that open_clip's transformers do not have", key=str(folder / CONFIG), found=config.hidden_act,
            expected=" or ".join(known),
        )  # fmt: skip
    return known[config.hidden_act]


def _parsed(kind: Any, folder: Path) -> Any:
    from huggingface_hub.errors import StrictDataclassError

    try:
        return kind.from_dict(read_config(folder))
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot be read ({reason})", key=str(folder / CONFIG), expected="the configuration of a CLIP"
        ) from error


def _preprocessing(folder: Path) -> dict[str, Any]:
    """Of the folder's image processor; CLIP's own where there is none."""
    path = folder / PROCESSOR
    if not path.is_file():
        return {}
    try:
        given = json.loads(path.read_text())
        cut = "shortest" if given.get("do_center_crop", True) else "squash"
        found = {"interpolation": INTERPOLATION[given.get("resample", 3)], "resize_mode": cut}
        return {**found, **{ours: given[theirs] for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot be read ({type(error).__name__}: {error})", key=str(path), expected="CLIP's image processor, bicubic or bilinear"
        ) from error  # fmt: skip
