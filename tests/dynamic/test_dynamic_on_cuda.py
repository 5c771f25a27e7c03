"""Routed batches on a GPU equal a slow loop on the CPU, and generate the tokens that they do there."""

from __future__ import annotations

import copy

import pytest
import torch
from oracles import dynamic as oracle
from test_backbones import LANGUAGE, exclusive_of, language, weights_of
from test_generation import NEW, prompts
from test_model import CONFIGS, batch, encoder_of, last_states, random_exclusive, random_weights
from transformers import ResNetConfig, ResNetModel

from twin_merging.config import Exact, MlpRouter, Svd
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.dynamic.speeds import measure
from twin_merging.routers.mlp import MlpRouter as Router


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("plan", ["auto", "factored", "dense"])
@pytest.mark.parametrize("kind", ["factors", "dense", "mixed"])
@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_a_routed_batch_equals_a_model_of_its_own_for_each_example(architecture, kind, plan, dtype, tolerance, cuda):
    encoder = encoder_of(architecture, dtype)
    exclusive, weights, (ids, mask) = random_exclusive(encoder, kind), random_weights(dtype), batch()
    slow = torch.cat(oracle.outputs(encoder, exclusive, weights, ids, mask))
    twin = TwinMergedModel(encoder, exclusive, Exact(plan=plan)).to(cuda)
    found = last_states(twin, ids.to(cuda), mask.to(cuda), weights=weights.to(cuda))
    assert found.device.type == cuda
    torch.testing.assert_close(found.cpu().double(), slow, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_convolutions_and_batch_norms(dtype, tolerance, cuda):
    torch.manual_seed(0)
    encoder = ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1])).to(dtype).eval()
    exclusive = {
        name: (torch.rand if name.endswith("running_var") else torch.randn)(3, *tensor.shape, dtype=dtype) / 3
        for name, tensor in encoder.state_dict().items()
        if tensor.is_floating_point()
    }
    pixels, weights = torch.randn(5, 3, 32, 32, dtype=dtype), torch.rand(5, 3, dtype=dtype)
    slow = torch.cat(oracle.outputs(encoder, exclusive, weights, pixels))
    twin = TwinMergedModel(encoder, exclusive).to(cuda)
    with torch.no_grad():
        found = twin(pixels.to(cuda), weights=weights.to(cuda)).last_hidden_state
    assert found.device.type == cuda
    torch.testing.assert_close(found.cpu().double() / slow.abs().max(), slow / slow.abs().max(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_bfloat16_is_near(architecture, cuda):
    encoder = encoder_of(architecture, torch.float32)
    exclusive, weights, (ids, mask) = random_exclusive(encoder, "mixed"), random_weights(torch.float32), batch()
    slow = torch.cat(oracle.outputs(encoder, exclusive, weights, ids, mask))
    twin = TwinMergedModel(encoder, exclusive).to(cuda)
    with torch.autocast(cuda, torch.bfloat16):
        found = last_states(twin, ids.to(cuda), mask.to(cuda), weights=weights.to(cuda))
    assert float((found.cpu().double() - slow).norm() / slow.norm()) < 0.02


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", list(LANGUAGE))
def test_generated_tokens(kind, beams, cuda):
    model = language(kind, torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that logits are well apart
    deltas, weights, (ids, mask) = exclusive_of(model, True, 0.3), weights_of(dtype=torch.float32), prompts()
    settings = {
        "max_new_tokens": NEW, "min_new_tokens": NEW, "num_beams": beams, "do_sample": False, "pad_token_id": 0,
    }  # fmt: skip
    there = TwinMergedModel(copy.deepcopy(model), deltas).to(cuda)
    found = there.generate(ids.to(cuda), weights.to(cuda), attention_mask=mask.to(cuda), **settings)
    wanted = TwinMergedModel(model, deltas).generate(ids, weights, attention_mask=mask, **settings)
    assert torch.equal(found.cpu(), wanted)


def test_routing(cuda):
    encoder, (ids, mask) = encoder_of("bert", torch.float32), batch()
    torch.manual_seed(3)
    router = Router(MlpRouter(layer=1), encoder.config.hidden_size, 3).eval()
    exclusive = random_exclusive(encoder, "factors")
    found = TwinMergedModel(copy.deepcopy(encoder), exclusive, router=copy.deepcopy(router)).to(cuda)
    wanted = TwinMergedModel(encoder, exclusive, router=router)
    with torch.no_grad():
        there = found(input_ids=ids.to(cuda), attention_mask=mask.to(cuda)).last_hidden_state
        here = wanted(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_speeds_are_measured_there(dtype, cuda):
    speeds = measure(cuda, dtype)
    assert min(speeds.product, speeds.thin, speeds.batched, speeds.mixed, speeds.bytes, speeds.made, speeds.call) > 0


def test_models_that_lie_there_become_a_twin_there(cuda):
    base, (ids, mask) = encoder_of("bert", torch.float32), batch()
    experts = []
    for seed in range(3):
        torch.manual_seed(seed)
        experts.append(copy.deepcopy(base))
        with torch.no_grad():
            for parameter in experts[-1].parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    weights = random_weights(torch.float32)

    def states(where: str) -> torch.Tensor:
        models = [copy.deepcopy(model).to(where) for model in (base, *experts)]
        twin = TwinMergedModel.from_experts(models[0], models[1:], sparsifier=Svd(rank=4))
        return last_states(twin, ids.to(where), mask.to(where), weights=weights.to(where))

    found = states(cuda)
    assert found.device.type == cuda
    torch.testing.assert_close(found.cpu(), states("cpu"), rtol=0, atol=1e-4)
