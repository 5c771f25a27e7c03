"""A tiny random Llama with a tokenizer of bytes, saved as published ones are."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from twin_merging.backbones.causal_lm import CausalLMBackbone
from twin_merging.config import CausalLM
from twin_merging.tasks.generation import Request

END = "<end>"


def save_language(
    folder: Path, kind: str = "llama", seed: int = 0, context: int = 96, words: tuple[str, ...] = (), width: int = 32
) -> Path:
    """A model whose greedy answers differ from prompt to prompt and do not settle on one token.

    Args:
        words: of two characters each, which are one token.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(word[0].replace(" ", "Ġ"), word[1]) for word in words]
    tokens = [END, *alphabet, *map("".join, merges)]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END).save_pretrained(folder)
    torch.manual_seed(seed)
    size = {"vocab_size": len(tokens), "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**size, n_embd=width, n_layer=2, n_head=2, n_positions=context))
    else:
        model = LlamaForCausalLM(
            LlamaConfig(**size, hidden_size=width, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                        intermediate_size=2 * width, max_position_embeddings=context, tie_word_embeddings=kind == "tied")
        )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def backbone_of(folder: Path, **options) -> CausalLMBackbone:
    return CausalLMBackbone(CausalLM(pretrained=str(folder), **options), folder, torch.device("cpu"), autocast=False)


def some_requests(count: int = 11, new: int = 12) -> list[Request]:
    """Prompts of very different lengths."""
    chance = random.Random(0)
    texts = ["".join(chance.choices("abcdefgh ,.?\n", k=chance.randint(1, 40))) for _ in range(count)]
    return [Request(text, new) for text in texts]


def reference(model, tokenizer, request: Request) -> str:
    """What transformers' own greedy search says to one prompt, cut before the first stop."""
    ids = torch.tensor([tokenizer(request.prompt)["input_ids"]])
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.max_new_tokens, do_sample=False, pad_token_id=0
    )
    text = tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
    for stop in request.stop:
        text = text.split(stop)[0]
    return text
