"""λ of encoders with BatchNorm: its gradient is autograd's through the merge and through the batch's own statistics."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from backbones.tiny_batchnorm import save_resnet
from backbones.tiny_images import backbone_of, colour_task
from backbones.tiny_learning import RUN, encoder_of, in_doubles
from oracles import adamerging as oracle
from torch.func import functional_call

from twin_merging.config import AdaMerging
from twin_merging.merging.adamerging import Mixture
from twin_merging.pipeline import data_methods

T, BATCH = 2, 6


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return in_doubles(backbone_of(save_resnet(tmp_path_factory.mktemp("models") / "resnet")))


def test_its_gradient_is_that_of_all_tasks_normalized_together(backbone, monkeypatch):
    tasks = [colour_task("a", 12, seed=1), colour_task("b", 12, seed=2)]
    encoder, heads = encoder_of(backbone, tasks, monkeypatch)
    encoder.requires_grad_(False)
    own = dict(encoder.named_parameters())
    generator = torch.Generator().manual_seed(0)
    deltas = {
        name: 0.2 * torch.randn(T, *parameter.shape, generator=generator, dtype=torch.float64)
        for name, parameter in own.items()
    }
    start = {name: parameter.detach().clone() for name, parameter in own.items()}
    statistics = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    for parameter in own.values():
        parameter.requires_grad_()
    coefficients = torch.rand(T, len(own), generator=generator, dtype=torch.float64)
    method = AdaMerging(batch_size=BATCH, inputs="validation")
    backward = data_methods._entropy_of(RUN, tasks, encoder, method)
    mixture = Mixture(own, deltas)
    mixture.write(coefficients)
    loss, gradient = backward(), mixture.gradient()

    order = torch.Generator().manual_seed(0)  # each task's first batch, one task after the other
    rows = [torch.randperm(12, generator=order)[:BATCH].tolist() for _ in tasks]
    pixels = [
        backbone.batch(backbone.inputs(task, "validation"), some)["pixel_values"]
        for task, some in zip(tasks, rows, strict=True)
    ]
    chosen = coefficients.clone().requires_grad_()
    merged = {
        name: value + sum(chosen[t, place] * deltas[name][t] for t in range(T))
        for place, (name, value) in enumerate(start.items())
    }
    fresh = (
        backbone.encoder_with({name: tensor.float() for name, tensor in encoder.state_dict().items()}).double().train()
    )
    pooled = functional_call(fresh, merged, kwargs={"pixel_values": torch.cat(pixels)}).pooler_output.flatten(1)
    logits = [
        heads[task.name].double().model.classifier(part) for task, part in zip(tasks, pooled.split(BATCH), strict=True)
    ]
    expected = sum(-(each.softmax(-1) * each.log_softmax(-1)).sum(-1).mean() for each in logits)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert loss == pytest.approx(sum(sum(map(oracle.entropy, each.tolist())) / BATCH for each in logits), rel=1e-5)
    torch.testing.assert_close(gradient, chosen.grad, rtol=1e-4, atol=1e-7)
    floating = partial(filter, lambda name: statistics[name].is_floating_point())
    assert all(torch.equal(dict(encoder.named_buffers())[name], statistics[name]) for name in floating(statistics))
    assert not any(module.training for module in encoder.modules())
