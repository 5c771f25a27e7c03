"""Fine-tuning low-rank adapters by peft, and the expert they make."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import PreTrainedModel

from twin_merging.backbones.encoders import EncoderBackbone
from twin_merging.config import LoraFineTuning
from twin_merging.errors import UserError
from twin_merging.experts.fine_tuning import save_expert, train
from twin_merging.tasks.base import Task


def lora_fine_tuning(
    backbone: EncoderBackbone, task: Task, options: LoraFineTuning, seed: int, folder: Path, scratch: Path
) -> None:
    """Fine-tune θ₀ + (α/r)·BA with the head in full, and save the expert with the *product* added to its weights.

    Merging the products, not the factors A and B one by one, is what Twin-Merging on LoRA means (paper appendix A).

    Raises:
        UserError: if ``targets`` match no linear layer.
    """
    torch.manual_seed(seed)
    model = backbone.new_expert(task, options.backbone_dropout)
    backbone.check_head_reads_first_token(model)
    heads = sorted({name.split(".")[0] for name in backbone.head_state(model)})
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout,
        target_modules=options.targets, modules_to_save=heads,
    )  # fmt: skip
    adapted = adapt(model, config)
    adapted.base_model_prefix = model.base_model_prefix
    history = train(backbone, adapted, task, options, seed, scratch)
    save_expert(backbone, adapted.merge_and_unload(), task, history, folder)


def adapt(model: PreTrainedModel, config: LoraConfig) -> Any:
    """The model with newly drawn adapters, which alone learn.

    Raises:
        UserError: if the targets match no layer that can be adapted.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", ".*is_gradient_checkpointing.*", FutureWarning
            )  # peft's reading of a model
            return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"no layer to adapt ({error})", key="finetune.targets", found=config.target_modules) from error
