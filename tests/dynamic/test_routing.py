"""What asking the router takes: blocks that run, and passes, by the layer that it reads."""

from __future__ import annotations

import pytest
import torch
from oracles import tfidf as oracle
from test_backbones import VISION, B, T, drawn, exclusive_of, language
from test_generation import prompts
from test_model import CONFIGS, encoder_of
from torch import nn
from transformers import AutoModel

from twin_merging.backbones.blocks import blocks_of
from twin_merging.config import MlpRouter as Options
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.errors import UserError
from twin_merging.routers.mlp import MlpRouter
from twin_merging.routers.tfidf import TfidfRouter

KINDS = [*CONFIGS, "gpt2", "llama", *VISION]


def twin_of(kind: str, router: nn.Module | None) -> tuple[TwinMergedModel, dict[str, torch.Tensor]]:
    """A twin of two blocks, and a batch."""
    ids, mask = prompts()
    if kind in VISION:
        model = drawn(AutoModel.from_config(VISION[kind], attn_implementation="eager"), torch.float32)
        inputs = {"pixel_values": torch.randn(B, 3, 8, 8, generator=torch.Generator().manual_seed(1))}
    elif kind in CONFIGS:
        model, inputs = encoder_of(kind, torch.float32), {"input_ids": ids, "attention_mask": mask}
    else:
        model, inputs = language(kind, torch.float32), {"input_ids": ids, "attention_mask": mask}
    return TwinMergedModel(model, exclusive_of(model, True, 0.3), router=router), inputs


def mlp(layer: int, hidden: int = 12) -> MlpRouter:
    torch.manual_seed(1)
    return MlpRouter(Options(layer=layer), hidden, T).eval()


def tfidf() -> TfidfRouter:
    generator = torch.Generator().manual_seed(1)
    return TfidfRouter(
        True, 1 + torch.rand(40, generator=generator), 3 * torch.randn(40, T, generator=generator), torch.zeros(T)
    )


def watch(twin: TwinMergedModel) -> list[int]:
    """The numbers of the blocks that run from now on."""
    ran: list[int] = []
    for number, block in enumerate(blocks_of(twin.encoder)):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    return ran


@pytest.mark.parametrize("layer", [-1, 0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_routing_runs_the_blocks_below_the_layer_and_gives_the_same_weights(kind, layer):
    twin, inputs = twin_of(kind, mlp(layer, 16 if kind == "llama" else 12))
    states = twin(**inputs, output_hidden_states=True).hidden_states[layer]
    expected = twin._weights(states, inputs.get("attention_mask"))
    ran = watch(twin)
    assert torch.equal(twin.route(**inputs), expected)
    assert ran == list(range(2 if layer < 0 else layer))
    assert twin.mixture.weights is None


@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_an_answer_is_exact_unless_the_lower_blocks_may_be_the_shared_experts(layer):
    twin, inputs = twin_of("bert", mlp(layer))
    expected = twin(**inputs, weights=twin.route(**inputs)).last_hidden_state
    ran = watch(twin)
    assert torch.equal(twin.answer(**inputs).last_hidden_state, expected)
    assert ran == [*range(layer), 0, 1]
    ran.clear()
    twin.lower = "shared"
    assert not torch.allclose(twin.answer(**inputs).last_hidden_state, expected)
    assert ran == [0, 1]


@pytest.mark.parametrize("layer", [2, -1])
@torch.no_grad()
def test_a_router_of_the_last_states_answers_in_two_passes(layer):
    twin, inputs = twin_of("bert", mlp(layer))
    expected = twin(**inputs, weights=twin.route(**inputs)).last_hidden_state
    ran = watch(twin)
    assert torch.equal(twin.answer(**inputs).last_hidden_state, expected)
    assert ran == [0, 1, 0, 1]


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama"])
@torch.no_grad()
def test_a_router_of_token_ids_runs_nothing_and_answers_in_one_pass(kind):
    router = tfidf()
    twin, inputs = twin_of(kind, router)
    ran = watch(twin)
    weights = twin.route(**inputs)
    assert ran == []
    for ids, mask, found in zip(inputs["input_ids"], inputs["attention_mask"], weights, strict=True):
        f = oracle.features(ids[mask.bool()].tolist(), router.idf.double().numpy(), True)
        wanted = oracle.probabilities(f @ router.weight.double().numpy(), 1.0)
        torch.testing.assert_close(found.double(), torch.from_numpy(wanted), rtol=0, atol=1e-5)
    answer = twin.answer(**inputs)
    assert ran == [0, 1]
    expected = twin(**inputs, weights=weights)
    assert torch.equal(answer[0], expected[0])
    assert not torch.allclose(answer[0], twin(**inputs)[0])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_text_generation_by_token_ids_routes_on_the_prompt(kind):
    twin, inputs = twin_of(kind, tfidf())
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "attention_mask": inputs["attention_mask"]}
    weights = twin.route(**inputs)
    ran = watch(twin)
    found = twin.generate(inputs["input_ids"], **settings)
    assert ran.count(0) == 4
    assert torch.equal(found, twin.generate(inputs["input_ids"], weights, **settings))


def test_images_have_no_token_ids():
    twin, inputs = twin_of("vit", tfidf())
    for ask in (twin.route, twin.answer):
        with pytest.raises(UserError, match="reads token ids") as caught:
            ask(**inputs)
        assert (caught.value.key, caught.value.found, caught.value.expected) == ("router", "pixel_values", "input_ids")


@pytest.mark.parametrize("lower", ["mixed", "shared"])
def test_under_autocast_the_router_answers_in_float32(lower):
    """Weights of bfloat16 would be those of no router, and nothing could be mixed with them."""
    twin, inputs = twin_of("bert", mlp(1))
    twin.lower, mask = lower, inputs["attention_mask"]
    exact = twin.answer(**inputs).last_hidden_state[mask.bool()]
    with torch.autocast("cpu", torch.bfloat16):
        weights = twin.route(**inputs)
        found = twin.answer(**inputs).last_hidden_state[mask.bool()]
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)), rtol=0, atol=1e-6)
    assert 0 < (found.float() - exact).norm() < 0.05 * exact.norm()
