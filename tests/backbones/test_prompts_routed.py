"""What a router reads of prompts, and answers under weights of each prompt's own."""

from __future__ import annotations

import pytest
import torch
from tiny_language import backbone_of, reference, save_language, some_requests

from twin_merging.backbones.blocks import blocks_of
from twin_merging.config import MlpRouter
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.routers.mlp import MlpRouter as Router
from twin_merging.tasks.generation import Request

KINDS = ["llama", "tied", "gpt2"]
T = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved language model of each kind."""
    return {kind: save_language(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.mark.parametrize("kind", ["llama", "tied"])
def test_weights_are_held_by_each_prompt_for_its_whole_answer(folders, kind):
    """Rows leave the batch on the way, and each goes on with its own weights."""
    backbone = backbone_of(folders[kind])
    generator = torch.Generator().manual_seed(3)
    shared = backbone.load()
    deltas = {
        name: 0.3 * torch.randn(T, *parameter.shape, generator=generator)
        for name, parameter in shared.named_parameters()
    }
    plain = some_requests(9, 16)
    requests = [Request(each.prompt, 2 + 7 * (row % 3), each.stop) for row, each in enumerate(plain)]
    weights = torch.softmax(2 * torch.randn(len(requests), T, generator=generator), 1)
    weights[5] = weights[2]
    twin = TwinMergedModel(backbone.load(), deltas)
    found = backbone.complete(twin, requests, 8, "test", weights)
    for row, request in enumerate(requests):
        merged = backbone.model_with(twin.merge_for(weights[row]))
        assert found[row] == reference(merged, backbone.tokenizer, request), row
    assert found != backbone.complete(twin, requests, 8, "test")
    assert twin.mixture.weights is None


def test_short_prompts_are_not_padded_to_a_long_one(tmp_path):
    backbone, read = backbone_of(save_language(tmp_path, context=512)), []
    short = some_requests(3, 2)
    requests = [*short, Request(" ".join([short[0].prompt] * 12), 2)]
    model = backbone.load()
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: read.append(tuple(args[0].shape)))
    lengths = [len(ids) for ids in backbone.tokenize([request.prompt for request in requests])]
    assert lengths[3] > 64 + max(lengths[:3])
    backbone.complete(model, requests, 4, "test")
    assert read[:2] == [(1, lengths[3]), (3, max(lengths[:3]))]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_without_weights_a_router_reads_each_prompt(folders, kind):
    backbone = backbone_of(folders[kind])
    torch.manual_seed(1)
    router = Router(MlpRouter(), 32, T).eval()
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.mul_(4)  # so that prompts are routed apart
    deltas = {name: 0.3 * torch.randn(T, *tensor.shape) for name, tensor in backbone.load().named_parameters()}
    twin, requests = TwinMergedModel(backbone.load(), deltas, router=router), some_requests()
    weights = router.weights(backbone.states(backbone.load(), requests, 1, "test"))
    assert weights.std(0).max() > 0.05
    assert backbone.complete(twin, requests, 4, "test") == backbone.complete(twin, requests, 4, "test", weights)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [-1, 0, 1])
@torch.no_grad()
def test_states_are_of_the_prompts_own_tokens(folders, kind, layer):
    backbone = backbone_of(folders[kind])
    model, requests, ran = backbone.load(), some_requests(), []
    mean = backbone.states(model, requests, 4, "test", layer)
    last = backbone.states(model, requests, 4, "test", layer, token="last")
    assert mean.shape == last.shape == (11, 32)
    for row, request in enumerate(requests):
        ids = torch.tensor([backbone.tokenizer(request.prompt)["input_ids"]])
        states = model(ids, output_hidden_states=True).hidden_states[layer][0]
        torch.testing.assert_close(mean[row], states.mean(0), rtol=0, atol=1e-5)
        torch.testing.assert_close(last[row], states[-1], rtol=0, atol=1e-5)
    for block in blocks_of(model):
        block.register_forward_hook(lambda *_: ran.append(1))
    backbone.states(model, requests[:1] * 3, 11, "test", layer)
    assert len(ran) == (2 if layer < 0 else layer)


def test_the_shared_experts_states_are_what_its_router_reads(folders):
    backbone = backbone_of(folders["llama"])
    shared, requests = backbone.load(), some_requests(5)
    deltas = {name: torch.randn(T, *parameter.shape) for name, parameter in shared.named_parameters()}
    expected = backbone.states(backbone.load(), requests, 5, "test")
    torch.testing.assert_close(backbone.states(TwinMergedModel(shared, deltas), requests, 2, "test"), expected)
