"""What goes into a block, found by a pass that ends there, is what a whole pass says that it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    CLIPVisionConfig,
    Dinov2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    RobertaConfig,
    ViTConfig,
)

from twin_merging.backbones.blocks import blocks_of, states_at

L = 3
SIZES = {"hidden_size": 12, "num_hidden_layers": L, "num_attention_heads": 2, "intermediate_size": 20}
TEXT = {**SIZES, "vocab_size": 40, "max_position_embeddings": 24}
IMAGE = {**SIZES, "image_size": 8, "patch_size": 4}
CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**TEXT), "roberta": RobertaConfig(**TEXT, pad_token_id=1), "electra": ElectraConfig(**TEXT, embedding_size=8),
    "distilbert": DistilBertConfig(vocab_size=40, dim=12, n_layers=L, n_heads=2, hidden_dim=20, max_position_embeddings=24),
    "gpt2": GPT2Config(vocab_size=40, n_embd=12, n_layer=L, n_head=2, n_positions=32),
    "llama": LlamaConfig(**TEXT), "qwen2": Qwen2Config(**TEXT, num_key_value_heads=1),
    "clip": CLIPVisionConfig(**IMAGE), "dinov2": Dinov2Config(**IMAGE), "vit": ViTConfig(**IMAGE),
}  # fmt: skip


def model_of(kind: str) -> nn.Module:
    """One with a head where the kind is a language model."""
    torch.manual_seed(0)
    auto = AutoModelForCausalLM if kind in ("gpt2", "llama", "qwen2") else AutoModel
    return auto.from_config(CONFIGS[kind]).eval()


def inputs_of(kind: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if "image_size" in CONFIGS[kind].to_dict():
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, 4:] = 0
    return {"input_ids": torch.randint(2, 40, (2, 6), generator=generator), "attention_mask": mask}


def watch(blocks: nn.ModuleList) -> list[int]:
    """The numbers of the blocks that run from now on, whenever one ends."""
    ran: list[int] = []
    for number, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    return ran


@pytest.mark.parametrize("layer", [-1, *range(L + 1)])
@pytest.mark.parametrize("kind", list(CONFIGS))
@torch.no_grad()
def test_states_are_those_of_a_whole_pass_and_no_later_block_runs(kind, layer):
    model, inputs = model_of(kind), inputs_of(kind)
    expected = model(**inputs, output_hidden_states=True).hidden_states[layer]
    blocks = blocks_of(model)
    assert blocks is not None
    assert len(blocks) == L
    ran, heads = watch(blocks), []
    if hasattr(model, "lm_head"):
        model.lm_head.register_forward_hook(lambda *_: heads.append(1))
    found = states_at(model, layer, lambda **asked: model(**inputs, **asked))
    assert torch.equal(found, expected)
    assert ran == list(range(L if layer < 0 else layer))
    if 0 <= layer < L:
        assert not heads
    after = model(**inputs, output_hidden_states=True).hidden_states[layer]  # nothing of it stays behind
    assert torch.equal(after, expected)


@torch.no_grad()
def test_without_a_list_of_blocks_the_pass_is_whole():
    model, inputs = model_of("bert"), inputs_of("bert")
    expected = model(**inputs, output_hidden_states=True).hidden_states
    ran = watch(model.encoder.layer)
    model.config.num_hidden_layers = L + 2
    assert blocks_of(model) is None
    assert blocks_of(nn.Linear(2, 2)) is None
    for layer in (0, 1, -1):
        assert torch.equal(states_at(model, layer, lambda **asked: model(**inputs, **asked)), expected[layer])
    assert ran == 3 * list(range(L))


def test_an_error_on_the_way_is_not_swallowed():
    model = model_of("bert")
    with pytest.raises(ValueError, match="input_ids"):
        states_at(model, 1, lambda **asked: model(**asked))
    assert not blocks_of(model)[1]._forward_pre_hooks
