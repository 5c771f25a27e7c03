"""Experts of a language model as fine-tuning or others saved them: adapters, or whole models."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from twin_merging.backbones.causal_lm import CausalLMBackbone
from twin_merging.checkpoints import Checkpoint, check_finite
from twin_merging.errors import UserError
from twin_merging.mapped import MappedCheckpoint
from twin_merging.standalone.adapters import Adapter
from twin_merging.standalone.sources import ADAPTER_CONFIG, Source

log = logging.getLogger("twin_merging")


def expert_weights(backbone: CausalLMBackbone, folder: Path) -> Mapping[str, Tensor]:
    """θ_t by the base's names; an adapter's θ₀ + ΔW_t, matrix by matrix as they are asked for.

    Raises:
        UserError: if an adapter is no LoRA (a DoRA, say), or one of a model of another shape.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return Checkpoint(folder)
    base, source = MappedCheckpoint(backbone.folder), Source(str(folder), str(folder), folder, {})
    adapter = Adapter(base, source)
    trained_on = source.config.get("base_model_name_or_path")
    for name in (*adapter.pairs, *adapter.whole):
        if adapter.shape(name) != base.entries[name].shape:
            raise UserError(
                "this adapter does not fit the base", key=f"{folder}: {name}", found=list(adapter.shape(name)),
                expected=list(base.entries[name].shape), hint=f"its base is {trained_on}",
            )  # fmt: skip
    if trained_on != backbone.options.pretrained:
        log.warning("%s says that its base is %s, and gets %s", folder, trained_on, backbone.options.pretrained)
    return adapter


def expert_model(backbone: CausalLMBackbone, folder: Path) -> PreTrainedModel:
    """θ_t as a plain model that answers.

    Raises:
        UserError: as of ``expert_weights``, or if weights are damaged or hold NaN or infinity.
    """
    weights = expert_weights(backbone, folder)
    if not isinstance(weights, Adapter):
        return backbone.load(folder)
    for name, tensor in weights.source.weights.items():
        check_finite(tensor, f"{folder}: {name}")
    return backbone.model_with(weights.changed)
