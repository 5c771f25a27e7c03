"""Tiny random models of real classes, in folders as published ones are, and the independent merge of their weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaModel,
)
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()

SMALL = {"vocab_size": 60, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
ENCODER = {**SMALL, "max_position_embeddings": 40}
CLASSES: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**ENCODER, num_labels=3)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "llama_untied": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=False)),
    "roberta": lambda: RobertaModel(RobertaConfig(**ENCODER)),
    "roberta_lm": lambda: RobertaForMaskedLM(RobertaConfig(**ENCODER)),
    "roberta_classifier": lambda: RobertaForSequenceClassification(RobertaConfig(**ENCODER, num_labels=3)),
}


def save(folder: Path, kind: str, seed: int, dtype: torch.dtype = torch.float32, shards: str = "5GB") -> Path:
    """A model whose weights are drawn by ``seed``, large enough that answers differ."""
    torch.manual_seed(seed)
    model = CLASSES[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder, max_shard_size=shards)
    return folder


def state(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's files."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Edit the tensors of a folder with one weight file."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def task_arithmetic(base: dict[str, Tensor], experts: list[dict[str, Tensor]], scaling: float) -> dict[str, Tensor]:
    """θ₀ + λ Σ τ_t in float64, with tensors of integers as they are."""
    return {
        name: (tensor.double() + scaling * sum(expert[name].double() - tensor.double() for expert in experts)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in base.items()
    }  # fmt: skip
