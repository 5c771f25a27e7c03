"""A Twin-Merging model in a folder: the shared expert as a Hugging Face model, compressed exclusive knowledge, the router.

FOLDER/shared/                  a model that ``from_pretrained`` loads
FOLDER/exclusive.safetensors    v_t of all experts: ``NAME.U``, ``NAME.S``, ``NAME.V`` of factors
FOLDER/router.safetensors       where there is one
FOLDER/twin.json                what each expert is called, and how the model was made
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from twin_merging import checkpoints
from twin_merging.checkpoints import SINGLE, Checkpoint
from twin_merging.config import Exact
from twin_merging.errors import UserError
from twin_merging.routers.stored import read_router
from twin_merging.sparsifiers.stored import read_back, tensors_of

if TYPE_CHECKING:
    from twin_merging.dynamic.model import TwinMergedModel

SHARED, EXCLUSIVE, ROUTER, RECORD = "shared", "exclusive.safetensors", "router.safetensors", "twin.json"


def load(kind: type[TwinMergedModel], folder: Path, options: Exact | None, dtype: torch.dtype) -> TwinMergedModel:
    """The model of a folder; its router in float32. See ``TwinMergedModel.from_pretrained``."""
    import transformers  # late, since merge.py only needs the names of the files

    if not (folder / RECORD).is_file():
        raise UserError("no twin", key=str(folder), expected=f"{SHARED}/, {EXCLUSIVE} and {RECORD}")
    config = transformers.AutoConfig.from_pretrained(folder / SHARED)
    name = (config.architectures or ["AutoModel"])[0]
    shared = getattr(transformers, name, transformers.AutoModel).from_pretrained(folder / SHARED, dtype=dtype)
    router = read_router(folder / ROUTER) if (folder / ROUTER).is_file() else None
    try:
        model = kind(shared, read_back(Checkpoint(folder / EXCLUSIVE)), options).to(dtype)
    except AttributeError as error:
        raise UserError(
            f"this architecture stores its weights under other names than its modules' ({error})", key=str(folder), found=name,
            expected="such as BERT, RoBERTa, Llama or ViT",
        ) from error  # fmt: skip
    model.router = None if router is None else router.requires_grad_(False)
    return model.eval()


def save(model: TwinMergedModel, state: Mapping[str, Tensor], folder: Path, experts: Sequence[str]) -> None:
    """Write the folder; the record last, so that without one there is no twin."""
    (folder / SHARED).mkdir(parents=True)
    names: dict[Tensor, str] = {}
    for name, tensor in state.items():
        names.setdefault(tensor, name)  # a tensor that is tied has several, of which the model needs the first
    checkpoints.save({name: tensor for tensor, name in names.items()}, folder / SHARED / SINGLE)
    config: Any = model.encoder.config
    config.architectures = [type(model.encoder).__name__]
    config.save_pretrained(folder / SHARED)
    found: dict[str, Tensor] = {}
    for name, delta in model.exclusive.items():
        found |= tensors_of(name, delta)
    checkpoints.save(found, folder / EXCLUSIVE)
    if isinstance(model.router, nn.Module):
        checkpoints.save(model.router.state_dict(), folder / ROUTER)
    (folder / RECORD).write_text(json.dumps({"experts": list(experts)}, indent=2, ensure_ascii=False))
