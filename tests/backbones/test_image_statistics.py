"""Statistics of image encoders equal those of plain loops, packed attention, added tokens and projection included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones.tiny_batchnorm import save_resnet
from oracles import fisher as oracle
from tiny_clip import backbone_of as clip_of
from tiny_clip import save_clip
from tiny_images import backbone_of as encoder_of
from tiny_images import colour_task, save_encoder
from torch import nn
from torch.nn import functional
from transformers import DeiTConfig, DeiTForImageClassification

from twin_merging.backbones import squares, statistics
from twin_merging.backbones.unpacked import unpacked
from twin_merging.errors import UserError

KINDS = ["vit", "dinov2", "deit", "clip", "resnet"]
TRUTH = [0, 2, 1, 1, 0]


def exact(backbone: Any) -> Any:
    """Images come in float64."""
    collate = backbone.collate
    backbone.collate = lambda rows: {name: tensor.double() for name, tensor in collate(rows).items()}
    return backbone


def some_backbone(folder: Path, kind: str, **options) -> Any:
    if kind == "clip":
        return exact(clip_of(save_clip(folder), **options))
    if kind == "resnet":
        return exact(encoder_of(save_resnet(folder), **options))
    save_encoder(folder, "vit" if kind == "deit" else kind)
    if kind == "deit":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        config = DeiTConfig(**sizes, image_size=32, patch_size=8, num_labels=2)
        DeiTForImageClassification(config).save_pretrained(folder)
    return exact(encoder_of(folder, **options))


def expert_of(backbone: Any) -> tuple[Any, Any]:
    """A float64 model whose numbers are none of the usual ones, and five images of three classes."""
    task = colour_task("colours")
    torch.manual_seed(0)
    model = backbone.new_expert(task).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
    return model, backbone.inputs(task, "test", range(5))


def alone(backbone: Any, inputs: Any) -> list[dict[str, torch.Tensor]]:
    return [backbone.collate([row]) for row in inputs.rows]


def check(found: dict[str, torch.Tensor], expected: dict[str, np.ndarray], tolerance: float = 1e-8) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=tolerance, atol=tolerance * 1e-4, err_msg=name)


@pytest.mark.parametrize("labels", ["expectation", "true"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_fisher_is_that_of_a_loop_over_examples_and_labels(tmp_path, kind, labels):
    backbone = some_backbone(tmp_path, kind)
    model, inputs = expert_of(backbone)
    found = statistics.diagonal_fisher(backbone, model, inputs, labels, TRUTH, 3, 0, "test")
    known = TRUTH if labels == "true" else None
    tolerance = 1e-6 if kind in ("vit", "deit") else 1e-8  # whose softmax is in float32
    check(found, oracle.diagonal_fisher(model, backbone.encoder(model), alone(backbone, inputs), known), tolerance)
    idle = ("mask_token", "key.bias", "k_proj.bias")  # of no image, and of no softmax
    assert all(values.max() > 1e-12 for name, values in found.items() if not name.endswith(idle))


@pytest.mark.parametrize("kind", ["dinov2", "clip"])
def test_so_it_is_of_images_of_another_size(tmp_path, kind):
    backbone = some_backbone(tmp_path, kind, image_size=48)
    model, inputs = expert_of(backbone)
    found = statistics.diagonal_fisher(backbone, model, inputs, "expectation", [], 3, 0, "test")
    tolerance = 1e-5 if kind == "dinov2" else 1e-8  # it resizes positions in float32
    check(found, oracle.diagonal_fisher(model, backbone.encoder(model), alone(backbone, inputs), None), tolerance)


def test_small_chunks_give_the_same(tmp_path, monkeypatch):
    backbone = some_backbone(tmp_path, "clip")
    model, inputs = expert_of(backbone)
    whole = statistics.diagonal_fisher(backbone, model, inputs, "expectation", [], 5, 0, "test")
    monkeypatch.setattr(squares, "CHUNK", 1)
    small = statistics.diagonal_fisher(backbone, model, inputs, "expectation", [], 5, 0, "test")
    check(small, {name: values.numpy() for name, values in whole.items()})


def test_autocast_gives_nearly_the_same(tmp_path):
    backbone = clip_of(save_clip(tmp_path))
    task = colour_task("colours")
    model, inputs = backbone.new_expert(task), backbone.inputs(task, "test", range(5))
    expected = statistics.diagonal_fisher(backbone, model, inputs, "expectation", [], 5, 0, "test")
    backbone.autocast = True
    found = statistics.diagonal_fisher(backbone, model, inputs, "expectation", [], 5, 0, "test")
    for name, values in expected.items():
        assert (found[name] - values).norm() <= 0.2 * values.norm() + 1e-7, name


class Standardized(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


def test_a_convolution_that_computes_something_else_is_refused(tmp_path):
    backbone = some_backbone(tmp_path, "vit")
    model, inputs = expert_of(backbone)
    model.vit.embeddings.patch_embeddings.projection.__class__ = Standardized
    with pytest.raises(UserError, match="each single example") as caught:
        statistics.diagonal_fisher(backbone, model, inputs, "expectation", [], 5, 0, "test")
    assert "Standardized" in caught.value.found


@torch.no_grad()
def inputs_of_matrices(tower: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What open_clip's tower gives to each of its matrices, written out, by parameter name: (rows, in)."""
    found = {}
    x = tower._embeds(pixels)
    for number, block in enumerate(tower.transformer.resblocks):
        at, heads = f"transformer.resblocks.{number}", block.attn.num_heads
        normal = block.ln_1(x)
        found[f"{at}.attn.in_proj_weight"] = normal
        q, k, v = functional.linear(normal, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
        width = q.shape[-1] // heads
        parts = []
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            looks = (q[..., own] @ k[..., own].mT / width**0.5).softmax(-1)
            parts.append(looks @ v[..., own])
        mixed = torch.cat(parts, -1)
        found[f"{at}.attn.out_proj.weight"] = mixed
        x = x + functional.linear(mixed, block.attn.out_proj.weight, block.attn.out_proj.bias)
        second = block.ln_2(x)
        found[f"{at}.mlp.c_fc.weight"] = second
        found[f"{at}.mlp.c_proj.weight"] = block.mlp.gelu(block.mlp.c_fc(second))
        x = x + block.mlp.c_proj(block.mlp.gelu(block.mlp.c_fc(second)))
    found["proj"] = tower.ln_post(x)[:, 0]
    torch.testing.assert_close(found["proj"] @ tower.proj, tower(pixels)[0])
    return {f"visual.{name}": tensor.flatten(0, -2) for name, tensor in found.items()}


def test_grams_of_clip_are_of_every_matrix(tmp_path):
    backbone = some_backbone(tmp_path, "clip")
    model, inputs = expert_of(backbone)
    encoder = backbone.encoder(model)
    found, layer_of = statistics.grams(backbone, encoder, inputs, 3, "test")
    expected = inputs_of_matrices(encoder.visual, backbone.collate(inputs.rows)["pixel_values"])
    assert layer_of.keys() == expected.keys()
    for parameter, seen in expected.items():
        gram = (seen.T @ seen).numpy()
        np.testing.assert_allclose(found[layer_of[parameter]].numpy(), gram, rtol=2e-5, atol=1e-4, err_msg=parameter)
    assert [name for name in layer_of if layer_of[name].endswith(statistics.TURNED)] == ["visual.proj"]


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_an_encoder_is_afterwards_what_it_was(tmp_path, kind):
    backbone = some_backbone(tmp_path, kind)
    model, inputs = expert_of(backbone)
    encoder, batch = backbone.encoder(model.eval()), backbone.collate(inputs.rows)
    names, modules = list(encoder.state_dict()), [*encoder.modules()]

    def answer() -> torch.Tensor:
        with torch.no_grad():
            return model(**batch).logits

    before = answer()
    with unpacked(encoder) as parts:
        torch.testing.assert_close(answer(), before, rtol=1e-10, atol=1e-10)
        assert bool(parts.matrices) == (kind == "clip")
    with pytest.raises(KeyError), unpacked(encoder):
        raise KeyError
    assert torch.equal(answer(), before)
    assert list(encoder.state_dict()) == names
    assert not any("forward" in vars(module) or module._forward_hooks for module in modules)
