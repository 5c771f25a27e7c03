"""A Twin-Merging model in a folder: the shared expert as a Hugging Face model, compressed exclusive knowledge, the router.

FOLDER/shared/                  a model that ``from_pretrained`` loads, or a LoRA adapter of the base that ``twin.json`` names
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
BASE = "base"  # in the record


def load(
    kind: type[TwinMergedModel], folder: Path, options: Exact | None, dtype: torch.dtype, base: str | None
) -> TwinMergedModel:
    """The model of a folder; its router in float32. See ``TwinMergedModel.from_pretrained``."""
    if not (folder / RECORD).is_file():
        raise UserError("no twin", key=str(folder), expected=f"{SHARED}/, {EXCLUSIVE} and {RECORD}")
    router = read_router(folder / ROUTER) if (folder / ROUTER).is_file() else None
    try:
        shared, name = _shared_expert(folder, dtype, base)
        model = kind(shared, read_back(Checkpoint(folder / EXCLUSIVE)), options).to(dtype)
    except AttributeError as error:
        raise UserError(
            f"this architecture stores its weights under other names than its modules' ({error})", key=str(folder), found=name,
            expected="such as BERT, RoBERTa, Llama or ViT",
        ) from error  # fmt: skip
    model.router = None if router is None else router.requires_grad_(False)
    return model.eval()


def _shared_expert(folder: Path, dtype: torch.dtype, base: str | None) -> tuple[nn.Module, str]:
    """θ_s and its architecture's name: a model of its own, or of θ₀ and an adapter, whose sum is rounded once."""
    import transformers  # late, since merge.py only needs the names of the files

    def read(place: Path) -> tuple[nn.Module, str]:
        config = transformers.AutoConfig.from_pretrained(place)
        name = (config.architectures or ["AutoModel"])[0]
        return getattr(transformers, name, transformers.AutoModel).from_pretrained(place, dtype=dtype), name

    from twin_merging.standalone.adapters import Adapter
    from twin_merging.standalone.sources import Source, find

    shared = Source(SHARED, SHARED, folder / SHARED, {})
    if not shared.is_adapter:
        return read(shared.folder)
    given = base or json.loads((folder / RECORD).read_text(encoding="utf-8"))[BASE]
    try:
        found = find(given, BASE)
    except UserError as error:
        error.hint = "from_pretrained(FOLDER, base=DIR) says where it is now"
        raise
    model, name = read(found.folder)
    adapted = Adapter(found.weights, shared)
    with torch.no_grad():
        for parameter, pair in adapted.pairs.items():
            entry, own = found.weights.entries[parameter], model.get_parameter(parameter)
            if adapted.shape(parameter) != entry.shape:
                raise UserError(
                    "the shared expert's adapter does not fit this base", key=BASE, found=given,
                    expected=f"{parameter} of {list(adapted.shape(parameter))}",
                )  # fmt: skip
            # θ₀ is read once more only where the model has rounded it: its file would be in memory twice
            is_rounded = torch.promote_types(own.dtype, entry.dtype) != own.dtype
            own.copy_(pair.product().add_(found.weights[parameter] if is_rounded else own))
    return model, name


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
