"""Statistics that are found anew for an encoder, beside those of their definitions."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from backbones.tiny_batchnorm import save_resnet
from oracles import batchnorm as oracle
from tiny_images import backbone_of, colour_task, save_encoder
from torch import nn

from twin_merging.backbones import batchnorm
from twin_merging.backbones.sources import has_running_statistics
from twin_merging.parameters import is_statistic


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return backbone_of(save_resnet(tmp_path_factory.mktemp("models") / "resnet"))


@pytest.fixture(scope="module")
def inputs(backbone):
    tasks = [colour_task("a", 24, seed=1), colour_task("b", 24, seed=2)]
    return [backbone.inputs(task, "train") for task in tasks]


def encoder_of(backbone):
    encoder = backbone.encoder_with(backbone.encoder(backbone.load(backbone.folder, 2)).state_dict())
    with torch.no_grad():
        for number, parameter in enumerate(encoder.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return encoder


def test_statistics_are_means_over_batches_of_all_tasks_alike(backbone, inputs):
    encoder = encoder_of(backbone)
    parts = [range(0, 8), range(8, 16), range(16, 24)]
    batches = [
        {"pixel_values": torch.cat([backbone.batch(each, part)["pixel_values"] for each in inputs])} for part in parts
    ]
    expected = oracle.statistics(encoder, batches)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items() if not is_statistic(name)}
    batchnorm.recompute(backbone, encoder, inputs, 16, "test")
    state = encoder.state_dict()
    found = {name for name in state if is_statistic(name) and state[name].is_floating_point()}
    assert found == set(expected)
    assert len(found) == 12
    for name, values in expected.items():
        np.testing.assert_allclose(state[name].numpy(), values, rtol=1e-4, atol=1e-5, err_msg=name)
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert not any(module.training for module in encoder.modules())
    assert all(layer.momentum == 0.1 and layer.num_batches_tracked == 3 for layer in batchnorm.norms(encoder))


def test_a_task_of_fewer_rows_has_its_share_of_every_batch(backbone):
    tasks = [colour_task("a", 24, seed=1), colour_task("b", 12, seed=2)]
    given, encoder = [backbone.inputs(task, "train") for task in tasks], encoder_of(backbone)
    batches = [
        {"pixel_values": torch.cat([backbone.batch(given[0], a)["pixel_values"], backbone.batch(given[1], b)["pixel_values"]])}
        for a, b in ((range(0, 12), range(0, 6)), (range(12, 24), range(6, 12)))
    ]  # fmt: skip
    expected = oracle.statistics(encoder, batches)
    batchnorm.recompute(backbone, encoder, given, 16, "test")
    for name, values in expected.items():
        np.testing.assert_allclose(encoder.state_dict()[name].numpy(), values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_nothing_is_drawn_at_random(backbone, inputs):
    encoder = encoder_of(backbone)
    encoder.embedder.register_module("pooler", nn.Sequential(encoder.embedder.pooler, nn.Dropout(0.5)))
    found = []
    for _ in range(2):
        batchnorm.recompute(backbone, encoder, inputs, 16, "test")
        found.append({name: tensor.clone() for name, tensor in encoder.state_dict().items()})
    assert all(torch.equal(found[0][name], tensor) for name, tensor in found[1].items())


def test_an_encoder_without_them_does_not_run(backbone):
    encoder = nn.Linear(2, 2)
    batchnorm.recompute(backbone, encoder, [SimpleNamespace(rows=None, lengths=None)], 16, "test")


def test_batches_that_normalize_themselves_are_not_remembered(backbone, inputs):
    encoder = encoder_of(backbone).eval()
    batch = backbone.batch(inputs[0], range(6))
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items() if name.endswith(("mean", "var"))}
    seen: list[torch.Tensor] = []
    encoder.embedder.embedder.normalization.register_forward_hook(lambda layer, given, output: seen.append(output))
    with batchnorm.by_batch(batchnorm.norms(encoder)):
        encoder(**batch)
    encoder(**batch)
    layer = encoder.embedder.embedder.normalization
    normal = (seen[0] - layer.bias.view(1, -1, 1, 1)) / layer.weight.view(1, -1, 1, 1)
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(8), rtol=0, atol=1e-5)
    assert not torch.allclose(seen[0], seen[1], atol=1e-2)
    assert all(torch.equal(encoder.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_checkpoints_header_says_whether_it_has_them(backbone, tmp_path):
    assert has_running_statistics(backbone.folder)
    assert not has_running_statistics(save_encoder(tmp_path, "vit"))
