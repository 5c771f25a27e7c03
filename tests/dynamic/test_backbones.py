"""Real classes in tiny random configurations: a routed batch equals a model of its own for each example."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch
from oracles import dynamic as oracle
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    Dinov2Config,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    ViTConfig,
)

from twin_merging.config import Exact
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.sparsifiers.svd import decompose

B, T, S = 4, 3, 6
LANGUAGE: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(vocab_size=40, n_embd=12, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=1),
    "llama": LlamaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=20,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
    ),
    "qwen2": Qwen2Config(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=20,
        bos_token_id=0, eos_token_id=1,
    ),
}  # fmt: skip
IMAGE = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "image_size": 8,
    "patch_size": 4,
}
VISION: dict[str, PreTrainedConfig] = {
    "clip": CLIPVisionConfig(**IMAGE), "dinov2": Dinov2Config(**IMAGE), "vit": ViTConfig(**IMAGE)
}  # fmt: skip


def drawn(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with random numbers in every parameter, those included that start as zeros or ones."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def language(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The same one at every call."""
    torch.manual_seed(0)
    return drawn(AutoModelForCausalLM.from_config(LANGUAGE[kind], attn_implementation="eager"), dtype)


def exclusive_of(model: nn.Module, factored: bool, scale: float = 0.05) -> dict:
    """v_t of every parameter, under the first of its names where it has several."""
    generator, deltas = torch.Generator().manual_seed(3), {}
    for name, parameter in model.named_parameters():
        delta = scale * torch.randn(T, *parameter.shape, generator=generator, dtype=torch.float64)
        delta = delta.to(parameter.dtype)
        deltas[name] = decompose(delta, 3) if factored and parameter.dim() == 2 else delta
    return deltas


def weights_of(seed: int = 2, dtype: torch.dtype = torch.float64, rows: int = B) -> torch.Tensor:
    drawn = torch.randn(rows, T, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.softmax(-1).to(dtype)


def merged(model: nn.Module, deltas: dict, weights: torch.Tensor) -> nn.Module:
    """The model of one example's weights, (T), in float64; parameters with two names change once."""
    own = copy.deepcopy(model).double()
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            parameter += torch.tensordot(weights.double(), oracle.multiplied_out(deltas[name]), 1)
    return own


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("kind", list(LANGUAGE))
@torch.no_grad()
def test_language_models(kind, factored, dtype, tolerance, caplog):
    model = language(kind, dtype)
    deltas, weights = exclusive_of(model, factored), weights_of(dtype=dtype)
    ids, mask = torch.randint(2, 40, (B, S)), torch.ones(B, S).long()
    mask[1, 4:] = mask[2, 3:] = 0
    slow = [
        merged(model, deltas, w)(ids[row : row + 1], attention_mask=mask[row : row + 1]).logits
        for row, w in enumerate(weights)
    ]
    shared = model(ids, attention_mask=mask).logits
    fast = TwinMergedModel(model, deltas)(input_ids=ids, attention_mask=mask, weights=weights).logits
    real = mask.bool()
    assert (fast - shared)[real].abs().max() > 0.01
    torch.testing.assert_close(fast.double()[real], torch.cat(slow)[real], rtol=0, atol=tolerance)
    assert "no routed form" not in caplog.text


@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("kind", list(VISION))
@torch.no_grad()
def test_vision_encoders(kind, factored, caplog):
    model = drawn(AutoModel.from_config(VISION[kind], attn_implementation="eager"), torch.float64)
    deltas, weights, images = exclusive_of(model, factored), weights_of(), torch.randn(B, 3, 8, 8, dtype=torch.float64)
    slow = [merged(model, deltas, w)(images[row : row + 1]) for row, w in enumerate(weights)]
    shared = model(images).last_hidden_state
    fast = TwinMergedModel(model, deltas)(pixel_values=images, weights=weights)
    assert (fast.last_hidden_state - shared).abs().max() > 0.01
    for name in ("last_hidden_state", "pooler_output"):
        torch.testing.assert_close(fast[name], torch.cat([output[name] for output in slow]), rtol=0, atol=1e-10)
    assert "no routed form" not in caplog.text


@pytest.mark.parametrize("kind", ["dinov2", "vit"])
@torch.no_grad()
def test_images_of_other_sizes_have_resized_positions(kind, caplog):
    model = drawn(AutoModel.from_config(VISION[kind], attn_implementation="eager"), torch.float64)
    deltas, weights = exclusive_of(model, True), weights_of()
    twin, asked = (
        TwinMergedModel(copy.deepcopy(model), deltas),
        {} if kind == "dinov2" else {"interpolate_pos_encoding": True},
    )
    for height, width in ((8, 8), (12, 12), (12, 8), (12, 12)):
        images = torch.randn(B, 3, height, width, dtype=torch.float64)
        slow = [merged(model, deltas, w)(images[row : row + 1], **asked) for row, w in enumerate(weights)]
        fast = twin(pixel_values=images, weights=weights, **asked).last_hidden_state
        torch.testing.assert_close(fast, torch.cat([each.last_hidden_state for each in slow]), rtol=0, atol=1e-6)
        same = twin(pixel_values=images, weights=weights[:1].repeat(B, 1), **asked).last_hidden_state
        alike = merged(model, deltas, weights[0])(images, **asked).last_hidden_state
        torch.testing.assert_close(same, alike, rtol=0, atol=1e-6)
    assert "no routed form" not in caplog.text


@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize(
    "skip", [(), ("proj",), ("positional_embedding", "class_embedding"), ("positional_embedding",)]
)
@pytest.mark.parametrize("tokens", [False, True])
@torch.no_grad()
def test_open_clips_image_tower_with_packed_attention(tokens, skip, factored, caplog):
    tower = open_clip.model.VisionTransformer(
        image_size=8, patch_size=4, width=12, layers=2, heads=2, mlp_ratio=2.0, output_dim=6, output_tokens=tokens
    )
    model = drawn(tower, torch.float64)
    deltas, weights, images = exclusive_of(model, factored), weights_of(), torch.randn(B, 3, 8, 8, dtype=torch.float64)
    for name in skip:
        deltas[name] = torch.zeros(T, *model.get_parameter(name).shape, dtype=torch.float64)
    slow = [merged(model, deltas, w)(images[row : row + 1]) for row, w in enumerate(weights)]
    shared = model(images)
    twin = TwinMergedModel(model, {name: delta for name, delta in deltas.items() if name not in skip})
    fast = twin(images, weights=weights)
    parts = zip(fast, shared, zip(*slow, strict=True), strict=True) if tokens else [(fast, shared, slow)]
    for found, before, expected in parts:
        assert (found - before).abs().max() > 0.01
        torch.testing.assert_close(found, torch.cat(list(expected)), rtol=0, atol=1e-10)
    assert "no routed form" not in caplog.text
    torch.testing.assert_close(twin(images), shared, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("plan", ["factored", "gathered", "dense"])
@torch.no_grad()
def test_half_precision_is_as_near_as_a_merged_model_is(plan, dtype):
    model = language("llama", torch.float32)
    deltas, ids = exclusive_of(model, True), torch.randint(2, 40, (B, S))
    weights = torch.eye(T)[torch.tensor([0, 2, 1, 0])] if plan == "gathered" else weights_of(dtype=torch.float32)
    exact = torch.cat([merged(model, deltas, w)(ids[row : row + 1]).logits for row, w in enumerate(weights)])
    halves = [merged(model, deltas, w).to(dtype)(ids[row : row + 1]).logits for row, w in enumerate(weights)]
    usual = (torch.cat(halves).double() - exact).norm()
    own = {name: type(delta)(*(part.to(dtype) for part in delta)) if isinstance(delta, tuple) else delta.to(dtype) for name, delta in deltas.items()}  # fmt: skip
    fast = TwinMergedModel(model.to(dtype), own, Exact(plan=plan))(input_ids=ids, weights=weights.to(dtype)).logits
    assert fast.dtype == dtype
    assert (fast.double() - exact).norm() < max(1.5 * usual, 1e-4)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("kind", list(LANGUAGE))
@torch.no_grad()
def test_a_model_in_half_precision_takes_knowledge_and_weights_of_any(kind, factored, stored):
    """A router gives weights in float32, and exclusive knowledge is stored as it was made."""
    model = language(kind, torch.float32)
    deltas, ids = (
        exclusive_of(model, factored),
        torch.randint(2, 40, (B, S), generator=torch.Generator().manual_seed(7)),
    )
    for weights in (weights_of(dtype=torch.float32), weights_of(dtype=torch.float32)[:1]):
        rows = weights.expand(B, -1)
        exact = torch.cat([merged(model, deltas, w)(ids[row : row + 1]).logits for row, w in enumerate(rows)])
        halves = [merged(model, deltas, w).bfloat16()(ids[row : row + 1]).logits for row, w in enumerate(rows)]
        own = {
            name: type(delta)(*(part.to(stored) for part in delta)) if isinstance(delta, tuple) else delta.to(stored)
            for name, delta in deltas.items()
        }
        found = TwinMergedModel(copy.deepcopy(model).bfloat16(), own)(input_ids=ids, weights=weights).logits
        assert found.dtype == torch.bfloat16
        assert (found.double() - exact).norm() < 1.5 * (torch.cat(halves).double() - exact).norm()
