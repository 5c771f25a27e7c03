"""CLIP's weights by open_clip's names, whoever saved them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from twin_merging.backbones.clip_source import WEIGHTS
from twin_merging.checkpoints import Checkpoint
from twin_merging.errors import UserError

PART = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)")
INNER = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
RENAMED = {
    "embeddings.class_embedding": "class_embedding", "embeddings.patch_embedding": "conv1",
    "embeddings.token_embedding": "token_embedding", "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm": "ln_pre", "post_layernorm": "ln_post", "final_layer_norm": "ln_final",
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
"""transformers' names of an encoder's parts, or of a block's, as open_clip has them."""
CLASS, WITHIN = "class_embedding", "embeddings."
"""The class token, which every image encoder of CLIP's has, and where transformers keeps it."""


def from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of ``open_clip.CLIP``, float32, of transformers' ``CLIPModel``: q, k and v packed, projections turned."""
    images, texts = (_encoder(_below(tensors, prefix)) for prefix in ("vision_model.", "text_model."))
    found = {f"visual.{name}": tensor for name, tensor in images.items()} | texts
    for ours, theirs in (("visual.proj", "visual_projection.weight"), ("text_projection", "text_projection.weight")):
        if theirs in tensors:
            found[ours] = tensors[theirs].T.contiguous()
    if "logit_scale" in tensors:
        found["logit_scale"] = tensors["logit_scale"]
    return {name: tensor.float() for name, tensor in found.items()}


def image_encoder(folder: Path) -> dict[str, Tensor]:
    """The state of open_clip's ``VisionTransformer``, float32, of a folder with a fine-tuned CLIP or its image encoder alone.

    Names are transformers', with or without ``vision_model.``, or open_clip's behind any prefix, as ``visual.`` or
    ``model.visual.``. The projection ``proj`` is among them only if the folder has it.

    Raises:
        UserError: if there is no image encoder of CLIP's, more than one, or a head beside it.
    """
    tensors = Checkpoint(_file(folder))
    tokens = [name for name in tensors if name == CLASS or name.endswith(f".{CLASS}")]
    if len(tokens) != 1:
        raise UserError(
            "not one image encoder of CLIP's", key=str(folder), found=f"{len(tokens)} class tokens among {len(tensors)} tensors",
            expected=f"a tensor vision_model.{WITHIN}{CLASS} (transformers) or visual.{CLASS} (open_clip)",
        )  # fmt: skip
    if heads := [name for name in tensors if name.startswith(("classifier.", "head.", "classification_head."))]:
        raise UserError(
            "a head that reads otherwise than CLIP's, which text makes", key=str(folder), found=heads[0], expected="an image encoder alone"
        )  # fmt: skip
    prefix = tokens[0].removesuffix(CLASS)
    if not prefix.endswith(WITHIN):
        found = _below(tensors, prefix)
    else:
        found = _encoder(_below(tensors, prefix.removesuffix(WITHIN)))
        found.pop("visual_projection.weight", None)
        if "visual_projection.weight" in tensors:
            found["proj"] = tensors["visual_projection.weight"].T.contiguous()
    return {name: tensor.float() for name, tensor in found.items()}


def _file(folder: Path) -> Path:
    """open_clip's file, else the only one, else transformers' in their usual places."""
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    files = list(folder.glob("*.safetensors"))
    return files[0] if len(files) == 1 else folder


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}


def _encoder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One of transformers' encoders by open_clip's names; what has none keeps its own."""
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if part := PART.fullmatch(name):
            packed = f"transformer.resblocks.{part[1]}.attn.in_proj_{part[3]}"
            parts.setdefault(packed, {})[part[2]] = tensor
        elif not name.endswith("position_ids"):  # which old files list
            found[_renamed(name)] = tensor
    for name, three in parts.items():
        if len(three) == 3:
            found[name] = torch.cat([three[letter] for letter in "qkv"])
    return found


def _renamed(name: str) -> str:
    block = INNER.fullmatch(name)
    start, inner = (f"transformer.resblocks.{block[1]}.", block[2]) if block else ("", name)
    stem, _, last = inner.rpartition(".")
    return start + (RENAMED.get(inner) or (f"{RENAMED[stem]}.{last}" if stem in RENAMED else inner))
