"""Experts of language models come back from their folders, or are refused by one clear error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from backbones.tiny_language import backbone_of, save_language
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from twin_merging.backbones.causal_lm import CausalLMBackbone
from twin_merging.errors import UserError
from twin_merging.experts.language import expert_model, expert_weights

IDS = torch.arange(24).view(2, 12)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> CausalLMBackbone:
    return backbone_of(save_language(tmp_path_factory.mktemp("llama")))


def adapter(folder: Path, backbone: CausalLMBackbone, **settings) -> Path:
    """An adapter whose factors are drawn, as peft saves it."""
    torch.manual_seed(1)
    model = get_peft_model(backbone.load(), LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 3, "lora_alpha": 6}, {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ["q_proj", "embed_tokens"]},
        {"r": 2, "lora_alpha": 4, "rank_pattern": {"v_proj": 5}, "alpha_pattern": {"layers.1.self_attn.v_proj": 9}},
    ],
)  # fmt: skip
@torch.no_grad()
def test_an_adapter_is_the_model_that_peft_makes_of_it(backbone, tmp_path, settings, caplog):
    folder = adapter(tmp_path / "expert", backbone, **settings)
    found = expert_model(backbone, folder)(IDS).logits
    expected = PeftModel.from_pretrained(backbone.load(), folder).eval()(IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert (found - backbone.load()(IDS).logits).abs().max() > 0.1
    assert "its base is" not in caplog.text


@torch.no_grad()
def test_a_whole_model_is_an_expert_too(backbone, tmp_path):
    folder = save_language(tmp_path / "expert", seed=5)
    expected = backbone_of(folder).load()
    assert torch.equal(expert_model(backbone, folder)(IDS).logits, expected(IDS).logits)
    assert set(expert_weights(backbone, folder)) == set(
        expert_weights(backbone, adapter(tmp_path / "a", backbone, r=2))
    )


def test_a_dora_is_refused(backbone, tmp_path):
    folder = adapter(tmp_path / "dora", backbone, r=2, use_dora=True)
    with pytest.raises(UserError, match="use_dora") as raised:
        expert_model(backbone, folder)
    assert "merge_and_unload" in raised.value.hint


@pytest.mark.parametrize("kind", ["other names", "another size"])
def test_an_adapter_of_another_model_is_refused(backbone, tmp_path, kind):
    folder = adapter(tmp_path / "expert", backbone, r=2, target_modules=["q_proj"])
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    if kind == "other names":
        tensors = {name.replace("q_proj", "c_attn"): tensor for name, tensor in tensors.items()}
    else:
        tensors = {
            name: torch.cat([tensor, tensor], 1) if "lora_A" in name else tensor for name, tensor in tensors.items()
        }
    save_file(tensors, file)
    with pytest.raises(UserError, match="does not fit the base") as raised:
        expert_model(backbone, folder)
    assert str(backbone.folder) in raised.value.hint


def test_an_adapter_that_names_another_base_is_warned_of(backbone, tmp_path, caplog):
    folder = adapter(tmp_path / "expert", backbone, r=2, target_modules=["q_proj"])
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "Qwen/Qwen-14B"}))
    expert_model(backbone, folder)
    assert "says that its base is Qwen/Qwen-14B" in caplog.text


def test_nan_in_a_factor_is_named(backbone, tmp_path):
    folder = adapter(tmp_path / "expert", backbone, r=2, target_modules=["q_proj"])
    copy = shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(copy / "adapter_model.safetensors")
    next(tensor for name, tensor in tensors.items() if "layers.1" in name and "lora_B" in name)[0, 0] = float("nan")
    save_file(tensors, copy / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.q_proj\.lora_B"):
        expert_model(backbone, copy)
