"""Tiny random models of real classes, saved as published ones are: weights, config and tokenizer in a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

WORDS = [
    "a",
    "an",
    "the",
    "movie",
    "short",
    "text",
    "that",
    "is",
    "longer",
    "another",
    "one",
    "good",
    "bad",
    "very",
    "not",
    "and",
    "plot",
    ",",
    ".",
    "!",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIZE = len(SPECIAL) + len(WORDS) + 26

SMALL = {
    "vocab_size": SIZE, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20,
    "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "pooler_hidden_size": 12}
TOKENS_OF_MODERN = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}


def config_of(kind: str) -> PreTrainedConfig:
    """A config of the class that ``kind`` names."""
    if kind == "distilbert":
        return DistilBertConfig(
            vocab_size=SIZE, dim=12, n_layers=2, n_heads=2, hidden_dim=20, max_position_embeddings=40, pad_token_id=0
        )
    if kind == "modernbert":
        return ModernBertConfig(**SMALL, **TOKENS_OF_MODERN, classifier_pooling="mean")
    kinds = {
        "bert": lambda: BertConfig(**SMALL),
        "roberta": lambda: RobertaConfig(**SMALL),
        "electra": lambda: ElectraConfig(**SMALL, embedding_size=8),
        "deberta": lambda: DebertaV2Config(**SMALL, **DEBERTA),
    }
    return kinds[kind]()


def save_tokenizer(folder: Path, pair_types: bool) -> None:
    """A WordPiece tokenizer that knows ``WORDS`` and single letters, with ``[CLS] a [SEP] b [SEP]``."""
    letters = [f"##{chr(ord('a') + i)}" for i in range(26)]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *WORDS, *letters])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    inputs = ["input_ids", *(["token_type_ids"] if pair_types else []), "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names).save_pretrained(folder)


def save_model(folder: Path, kind: str, num_labels: int = 3, seed: int = 0) -> Path:
    """A random classifier of ``num_labels`` outputs, with large enough weights that its answers differ."""
    torch.manual_seed(seed)
    config = config_of(kind)
    config.num_labels = num_labels
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(
                0.3 * torch.randn_like(parameter) if "orm" not in name else 0.1 * torch.randn_like(parameter)
            )
    model.save_pretrained(folder)
    save_tokenizer(folder, pair_types=kind in ("bert", "electra"))
    return folder
