"""The language model of the offline assets, and GGUF files that are none."""

from __future__ import annotations

import json

import gguf
import pytest
import torch
from gguf.quants import dequantize
from safetensors.torch import load_file

from twin_merging import archives, assets
from twin_merging.errors import UserError
from twin_merging.gguf_model import convert


@pytest.fixture(scope="module")
def found(need_asset):
    folder = need_asset("smollm2")
    return assets.model_folder("smollm2", folder), assets.archive("smollm2", folder)


def test_the_language_model_is_an_ordinary_folder(found):
    model, _ = found
    names = {path.name for path in model.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", assets.RECORD} <= names
    assert not [name for name in names if name.endswith((".gguf", ".py"))]
    config = json.loads((model / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config


def test_its_weights_are_those_of_the_quantized_file(found, tmp_path):
    """Compared by the gguf library's own dequantization; attention's rows are stored in another order, so by their sums."""
    model, archive = found
    asset = assets.find("smollm2")
    with archive.open("rb") as file:
        archives.extract(file, asset.model, tmp_path)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / asset.converted_from).tensors}
    weights = load_file(model / "model.safetensors")
    names = {
        "blk.3.ffn_down": "mlp.down_proj",
        "blk.3.ffn_norm": "post_attention_layernorm",
        "blk.3.attn_v": "self_attn.v_proj",
    }
    pairs = [(f"{own}.weight", f"model.layers.3.{name}.weight") for own, name in names.items()]
    for own, name in [*pairs, ("token_embd.weight", "model.embed_tokens.weight")]:
        whole = torch.tensor(dequantize(stored[own].data, stored[own].tensor_type))
        assert weights[name].dtype == torch.bfloat16
        torch.testing.assert_close(weights[name], whole.to(torch.bfloat16), rtol=0, atol=0)
    key = torch.tensor(dequantize(stored["blk.3.attn_k.weight"].data, stored["blk.3.attn_k.weight"].tensor_type))
    found_key = weights["model.layers.3.self_attn.k_proj.weight"].float()
    torch.testing.assert_close(found_key.norm(dim=1).sort().values, key.norm(dim=1).sort().values, rtol=2e-3, atol=1e-4)


def test_what_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UserError, match="no GGUF model") as raised:
        convert(tmp_path / "broken.gguf", tmp_path / "out")
    assert raised.value.key == str(tmp_path / "broken.gguf")
    assert not (tmp_path / "out").exists()
