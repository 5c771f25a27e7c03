"""A model from experts in memory, and to a folder and back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from test_backbones import LANGUAGE, B, T, language, weights_of
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, ResNetConfig, ResNetModel

from twin_merging.config import Exact, Magnitude, MlpRouter, NoSparsifier, Svd, WeightAveraging
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.errors import UserError
from twin_merging.routers.mlp import MlpRouter as Router
from twin_merging.routers.tfidf import TfidfRouter

IDS = torch.randint(2, 40, (B, 6), generator=torch.Generator().manual_seed(4))


def models(kind: str, count: int = T + 1) -> list[torch.nn.Module]:
    """A base and experts in float32."""
    found = []
    for seed in range(count):
        model = language(kind, torch.float32)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        found.append(model)
    return found


@pytest.mark.parametrize("kind", list(LANGUAGE))
@torch.no_grad()
def test_whole_knowledge_gives_the_experts_back_whatever_is_shared(kind):
    experts = models(kind)[1:]
    expected = torch.cat([expert(IDS[row : row + 1]).logits for row, expert in enumerate(experts)])
    for shared, sparsifier in (
        (WeightAveraging(), NoSparsifier()),
        (None, Svd(rank=40)),
        (None, Magnitude(fraction=1.0)),
    ):
        twin = TwinMergedModel.from_experts(models(kind, 1)[0], experts, shared, sparsifier)
        found = twin(input_ids=IDS[:T], weights=torch.eye(T)).logits
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_by_default_it_is_task_arithmetic_and_factors_of_rank_16():
    base, *experts = models("llama")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    twin = TwinMergedModel.from_experts(base, experts)
    merged = twin.merge_for(torch.zeros(T))
    for name in ("model.layers.0.mlp.down_proj.weight", "model.norm.weight"):
        total = sum(expert.state_dict()[name] - before[name] for expert in experts)
        torch.testing.assert_close(merged[name], before[name] + 0.3 * total, rtol=1e-5, atol=1e-6)
    assert twin.exclusive["model.layers.0.mlp.down_proj.weight"].S.shape == (T, 16)


def test_experts_of_another_architecture_are_refused():
    with pytest.raises(UserError, match=r"experts\[0\]: lm_head.weight: a tensor that the base does not have"):
        TwinMergedModel.from_experts(language("llama"), [language("qwen2"), language("gpt2")])


@pytest.mark.parametrize("sparsifier", [Svd(rank=2), Magnitude(fraction=0.3), NoSparsifier()])
@pytest.mark.parametrize("kind", list(LANGUAGE))
@torch.no_grad()
def test_a_folder_gives_the_same_answers_and_routes_the_same(kind, sparsifier, tmp_path):
    base, *experts = models(kind)
    hidden = base.get_input_embeddings().weight.shape[1]
    router = Router(MlpRouter(layer=1), hidden, T).eval()
    twin = TwinMergedModel.from_experts(base, experts, sparsifier=sparsifier, router=router)
    twin.save_pretrained(tmp_path / "twin", ["a", "b", "c"])
    again = TwinMergedModel.from_pretrained(tmp_path / "twin", Exact(plan="dense"))
    weights = twin.route(input_ids=IDS)
    torch.testing.assert_close(again.route(input_ids=IDS), weights, rtol=1e-5, atol=1e-6)
    assert int(again.router.layer) == 1
    for w in (weights, weights_of(dtype=torch.float32), None):
        expected = twin(input_ids=IDS, weights=w).logits
        torch.testing.assert_close(again(input_ids=IDS, weights=w).logits, expected, rtol=1e-4, atol=1e-5)
    shared = AutoModelForCausalLM.from_pretrained(tmp_path / "twin/shared").eval()
    torch.testing.assert_close(shared(IDS).logits, twin(input_ids=IDS).logits, rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "twin/twin.json").read_text())["experts"] == ["a", "b", "c"]
    assert {path.name for path in (tmp_path / "twin").iterdir()} == {
        "shared", "exclusive.safetensors", "router.safetensors", "twin.json"
    }  # fmt: skip


@torch.no_grad()
def test_a_router_of_token_ids_comes_back_too(tmp_path):
    base, *experts = models("gpt2")
    router = TfidfRouter(False, torch.rand(40), 3 * torch.randn(40, T), torch.randn(T), 0.5)
    twin = TwinMergedModel.from_experts(base, experts, router=router)
    twin.save_pretrained(tmp_path / "twin")
    again = TwinMergedModel.from_pretrained(tmp_path / "twin")
    assert isinstance(again.router, TfidfRouter)
    assert torch.equal(again.route(input_ids=IDS), twin.route(input_ids=IDS))
    torch.testing.assert_close(
        again.answer(input_ids=IDS).logits, twin.answer(input_ids=IDS).logits, rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_an_encoder_without_a_router(tmp_path):
    config = BertConfig(vocab_size=40, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20)
    base, *experts = (AutoModel.from_config(config).eval() for _ in range(3))
    twin = TwinMergedModel.from_experts(base, experts)
    twin.save_pretrained(tmp_path / "twin")
    again = TwinMergedModel.from_pretrained(tmp_path / "twin")
    assert again.router is None
    weights = torch.eye(2)[[0, 1, 1, 0]]
    expected = twin(input_ids=IDS, weights=weights).last_hidden_state
    torch.testing.assert_close(again(input_ids=IDS, weights=weights).last_hidden_state, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_statistics_of_a_batch_norm_come_back(tmp_path):
    """With them: what is routed, saved, merged for one example, and read by the router."""
    torch.manual_seed(0)
    shared = ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic")).eval()
    exclusive = {}
    for name, tensor in shared.state_dict().items():
        if name.endswith("running_var"):
            exclusive[name] = torch.rand(2, *tensor.shape)
        elif tensor.is_floating_point():
            exclusive[name] = 0.1 * torch.randn(2, *tensor.shape)
    router = Router(MlpRouter(), 6, 2).eval()
    twin = TwinMergedModel(shared, exclusive, router=router)
    twin.save_pretrained(tmp_path / "twin")
    again = TwinMergedModel.from_pretrained(tmp_path / "twin")
    pixels = torch.randn(3, 3, 32, 32)
    weights = again.route(pixel_values=pixels)
    states = AutoModel.from_pretrained(tmp_path / "twin/shared").eval()(pixels).last_hidden_state
    torch.testing.assert_close(weights, router.weights(states.mean((2, 3))))
    found = again.answer(pixel_values=pixels).pooler_output
    torch.testing.assert_close(found, twin(pixel_values=pixels, weights=weights).pooler_output)
    for row in range(3):
        plain = AutoModel.from_pretrained(tmp_path / "twin/shared").eval()
        plain.load_state_dict(again.merge_for(weights[row]))
        assert not torch.equal(plain.embedder.embedder.normalization.running_var, torch.ones(4))
        torch.testing.assert_close(found[row], plain(pixels[row : row + 1]).pooler_output[0], rtol=1e-5, atol=1e-5)


def test_experts_with_batch_norms_are_not_merged_without_inputs():
    models = [ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1])) for _ in range(2)]
    with pytest.raises(UserError, match="running statistics") as caught:
        TwinMergedModel.from_experts(models[0], models[1:])
    assert caught.value.key == "base"


def test_a_folder_that_exists_is_not_overwritten(tmp_path):
    base, *experts = models("llama")
    (tmp_path / "twin/shared").mkdir(parents=True)
    with pytest.raises(FileExistsError):
        TwinMergedModel.from_experts(base, experts).save_pretrained(tmp_path / "twin")


@torch.no_grad()
def test_the_lines_of_the_readme_answer(tmp_path, monkeypatch, capsys):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (lines,) = re.findall(r"```python\n(from twin_merging.dynamic.model.*?)```", readme, re.DOTALL)
    base, *experts = models("llama")
    router = Router(MlpRouter(), 16, T).eval()
    TwinMergedModel.from_experts(base, experts, router=router).save_pretrained(tmp_path / "OUT")
    monkeypatch.chdir(tmp_path)
    known = {"batch": {"input_ids": IDS}, "prompts": {"input_ids": IDS, "pad_token_id": 0}}
    exec(lines, known)
    assert known["output"].logits.shape == (B, 6, 40)
    assert known["weights"].shape == (B, T)
    assert known["tokens"].shape[1] <= 6 + 64
    plain = models("llama", 1)[0]
    plain.load_state_dict(known["plain"])
    torch.testing.assert_close(plain(IDS[:1]).logits, known["output"].logits[:1], rtol=1e-4, atol=1e-5)
    assert "LlamaForCausalLM.model.layers.0.self_attn.q_proj" in capsys.readouterr().out


@pytest.mark.parametrize("plan", ["auto", "factored", "dense"])
@torch.no_grad()
def test_a_twin_in_bfloat16_takes_half_the_memory_and_answers_nearly_the_same(plan, tmp_path):
    base, *experts = models("llama")
    router = Router(MlpRouter(layer=1), base.get_input_embeddings().weight.shape[1], T).eval()
    TwinMergedModel.from_experts(base, experts, sparsifier=Svd(rank=2), router=router).save_pretrained(
        tmp_path / "twin"
    )
    exact = TwinMergedModel.from_pretrained(tmp_path / "twin", Exact(plan=plan))
    half = TwinMergedModel.from_pretrained(tmp_path / "twin", Exact(plan=plan), torch.bfloat16)

    def size(model: TwinMergedModel) -> int:
        return sum(tensor.nbytes for tensor in (*model.encoder.parameters(), *model.encoder.buffers()))

    assert size(half) < 0.55 * size(exact)
    assert {parameter.dtype for parameter in half.router.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in half.parameters())
    weights = weights_of(dtype=torch.float32)
    expected = exact(input_ids=IDS, weights=weights).logits
    found = half(input_ids=IDS, weights=weights).logits.float()
    assert float((found - expected).norm() / expected.norm()) < 0.03
    torch.testing.assert_close(half.route(input_ids=IDS).float(), exact.route(input_ids=IDS), rtol=0, atol=0.05)
    assert half.answer(input_ids=IDS).logits.dtype == torch.bfloat16
    assert half.generate(IDS, max_new_tokens=3, pad_token_id=0).shape == (len(IDS), IDS.shape[1] + 3)
