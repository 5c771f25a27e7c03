"""The Fisher information and the Grams of timm's vision transformers, which add tokens and positions without a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import fisher as oracle
from tiny_images import colour_task
from tiny_timm import backbone_of, save_timm
from torch import nn

from twin_merging.backbones import statistics
from twin_merging.errors import UserError


def expert_of(folder: Path, kind: str, **more: Any) -> tuple[Any, Any, Any]:
    """Backbone, a float64 expert whose numbers are none of the usual ones, and five images of three classes."""
    save_timm(folder, kind, **more)
    backbone, task = backbone_of(folder), colour_task("colours")
    collate = backbone.collate
    backbone.collate = lambda rows: {name: tensor.double() for name, tensor in collate(rows).items()}  # type: ignore[method-assign]
    torch.manual_seed(0)
    model = backbone.new_expert(task).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone, model, backbone.inputs(task, "test", range(5))


@pytest.mark.parametrize(
    ("kind", "more"),
    [("vit", {}), ("vit", {"init_values": 0.1}), ("vit", {"class_token": False, "global_pool": "avg"}), ("test_vit", {"img_size": 32}),
     ("resnet", {}), ("efficientnet", {}), ("tf_efficientnet_lite0", {})],
)  # fmt: skip
def test_the_fisher_is_that_of_a_loop_over_examples_and_labels(tmp_path, kind, more):
    backbone, model, inputs = expert_of(tmp_path / "model", kind, **more)
    check(backbone, model, inputs)


def test_so_it_is_of_the_biases_of_convolutions_in_groups(tmp_path):
    backbone, model, inputs = expert_of(tmp_path / "model", "efficientnet")
    grouped = [each for each in backbone.encoder(model).modules() if isinstance(each, nn.Conv2d) and each.groups > 1]
    assert grouped
    for layer in grouped:
        layer.bias = nn.Parameter(0.1 * torch.randn(layer.out_channels, dtype=torch.float64))
    check(backbone, model, inputs)


def check(backbone: Any, model: Any, inputs: Any) -> None:
    found = statistics.diagonal_fisher(backbone, model, inputs, "expectation", [], 3, 0, "test")
    alone = [backbone.collate([row]) for row in inputs.rows]
    expected = oracle.diagonal_fisher(model, backbone.encoder(model), alone, None)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=1e-8, atol=1e-12, err_msg=name)
    assert all(values.max() > 1e-12 for values in found.values())


def test_every_linear_layer_has_its_gram(tmp_path):
    backbone, model, inputs = expert_of(tmp_path / "model", "vit")
    encoder = backbone.encoder(model)
    found, layer_of = statistics.grams(backbone, encoder, inputs, 3, "test")
    linear = {f"{name}.weight" for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    assert layer_of.keys() == linear
    assert all(found[layer].trace() > 0 for layer in layer_of.values())


@pytest.mark.parametrize(("kind", "more"), [("vit", {"reg_tokens": 2}), ("vit", {"no_embed_class": True})])
def test_other_tokens_are_refused(tmp_path, kind, more):
    backbone, model, inputs = expert_of(tmp_path / "model", kind, **more)
    with pytest.raises(UserError, match="each single example") as raised:
        statistics.diagonal_fisher(backbone, model, inputs, "expectation", [], 3, 0, "test")
    assert "VisionTransformer" in raised.value.found
