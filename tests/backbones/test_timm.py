"""timm's encoders: what they see, that heads read what timm's own do, and that they learn."""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_images import colour_task
from tiny_timm import KINDS, backbone_of, save_timm
from torch import nn

from twin_merging.backbones import timm_source
from twin_merging.backbones.features import read_by_head
from twin_merging.backbones.timm_source import layers_to_read, locate_timm
from twin_merging.compose import plan
from twin_merging.config import Exact, FullFineTuning, LoraFineTuning, Timm
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.errors import UserError
from twin_merging.experts.fine_tuning import full_fine_tuning
from twin_merging.experts.lora import lora_fine_tuning
from twin_merging.experts.multitask import train_jointly
from twin_merging.mirror.needs import needed
from twin_merging.sparsifiers.svd import Factors
from twin_merging.tasks.base import Task

OPTIONS = {"epochs": 6, "lr": 3e-3, "head_lr": 1e-2, "batch_size": 8}


@pytest.fixture(scope="module", params=list(KINDS))
def saved(request, tmp_path_factory) -> tuple[Path, Path, nn.Module]:
    """The base's folder, that of an expert whose head its publisher trained, and the expert."""
    folder = tmp_path_factory.mktemp(request.param)
    save_timm(folder / "base", request.param, seed=1, num_classes=7)
    return folder / "base", folder / "expert", save_timm(folder / "expert", request.param)


@pytest.fixture(scope="module")
def task() -> Task:
    return colour_task("colours")


def statistics_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items() if "running" in name}


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [{}, {"crop_mode": "squash"}, {"crop_pct": 0.5, "interpolation": "bilinear"}])
def test_the_model_sees_what_timm_makes(tmp_path, task, changed):
    save_timm(tmp_path / "model", "resnet")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config["pretrained_cfg"] |= changed
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    backbone = backbone_of(tmp_path / "model")
    inputs = backbone.inputs(task, "test", [3, 0, 5])
    seen = {
        "input_size": (3, 32, 32),
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
        "interpolation": "bilinear",
        "crop_pct": 0.95,
    }
    make_input = timm.data.create_transform(**{**seen, **changed})
    keys = [task.splits["test"].texts[row][0] for row in (3, 0, 5)]
    expected = torch.stack([make_input(Image.open(io.BytesIO(task.images[key]))) for key in keys])
    found = backbone.batch(inputs, [0, 1, 2])["pixel_values"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert all(row["pixel_values"].dtype == torch.uint8 for row in inputs.rows)
    assert inputs.lengths == [1] * 3


@pytest.mark.parametrize(("kind", "tokens"), [("vit", 37), ("efficientnet", 4)])
def test_another_size_is_seen(tmp_path, task, kind, tokens):
    save_timm(tmp_path / "model", kind)
    backbone = backbone_of(tmp_path / "model", image_size=48)
    inputs = backbone.inputs(task, "test", [0])
    assert backbone.batch(inputs, [0])["pixel_values"].shape == (1, 3, 48, 48)
    assert inputs.lengths == [tokens]
    model = backbone.load(backbone.folder, 2)
    features = backbone.encode(backbone.encoder_with(backbone.encoder(model).state_dict()), inputs, 2, "test")
    assert features["mean"].shape == (1, model.config.hidden_size)
    if kind == "vit":  # by timm's own resampling
        start = load_file(tmp_path / "model/model.safetensors")["pos_embed"]
        expected = timm.layers.resample_abs_pos_embed(start, (6, 6), num_prefix_tokens=1)
        torch.testing.assert_close(model.encoder.timm.pos_embed.detach(), expected, rtol=0, atol=1e-6)
    sizes = {
        json.dumps(locate_timm(Timm(pretrained=str(backbone.folder), image_size=size), tmp_path, None).identity)
        for size in (None, 48)
    }
    assert len(sizes) == 2


# --- encoder and head -------------------------------------------------------------------------------------------------


def test_encoder_and_head_answer_as_timms_model_does(saved, task):
    base, expert, original = saved
    backbone = backbone_of(base)
    model = backbone.load(expert, 3)
    backbone.check_head_reads_first_token(model)
    inputs = backbone.inputs(task, "validation")
    images = backbone.batch(inputs, range(len(inputs.rows)))["pixel_values"]
    features = backbone.encode(backbone.encoder(model), inputs, 7, "test")
    assert read_by_head(features) == "pooled"
    with torch.inference_mode():
        expected, last = original(images), original.forward_features(images)
        torch.testing.assert_close(model(images).logits, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(backbone.head(backbone.head_state(model), 3)(features), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        features["mean"], last.mean(1) if last.dim() == 3 else features["pooled"], rtol=0, atol=1e-5
    )
    names = {name for name in original.state_dict() if not name.startswith(original.pretrained_cfg["classifier"] + ".")}
    assert {f"encoder.timm.{name}" for name in names} | {"task_head.weight", "task_head.bias"} == set(
        model.state_dict()
    )


def test_a_new_expert_starts_from_the_published_encoder_with_a_head_of_its_own(saved, task):
    _, folder, original = saved
    backbone = backbone_of(folder)
    torch.manual_seed(0)
    one, two = backbone.new_expert(task), backbone.new_expert(task)
    for name, tensor in one.encoder.timm.state_dict().items():
        assert torch.equal(tensor, original.state_dict()[name]), name
        assert torch.equal(two.encoder.timm.state_dict()[name], tensor)
    assert not torch.equal(one.task_head.weight, two.task_head.weight)
    assert 0.01 < one.task_head.weight.std() < 0.03
    torch.manual_seed(0)
    assert torch.equal(backbone_of(folder).new_expert(task).task_head.weight, one.task_head.weight)


def test_a_copy_of_an_encoder_answers_by_its_own_weights(tmp_path):
    save_timm(tmp_path / "model", "resnet")
    backbone, pixels = backbone_of(tmp_path / "model"), torch.rand(2, 3, 32, 32)
    encoder = backbone.encoder(backbone.load(backbone.folder, 2)).eval()
    for copied in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        with torch.no_grad():
            before = encoder(pixels).pooler_output
            for parameter in copied.parameters():
                parameter.zero_()
            assert torch.equal(encoder(pixels).pooler_output, before)
            assert not copied(pixels).pooler_output.any()


def test_layers_are_the_inputs_of_the_blocks(tmp_path, task):
    save_timm(tmp_path / "model", "vit")
    backbone = backbone_of(tmp_path / "model")
    encoder, inputs = backbone.encoder(backbone.load(backbone.folder, 2)), backbone.inputs(task, "test")
    images, found = backbone.batch(inputs, range(24))["pixel_values"], []
    encoder.timm.blocks[1].register_forward_pre_hook(lambda _, args: found.append(args[0]))
    with torch.inference_mode():
        encoder(images)
    for layer in (0, 1, 2, -1):
        whole = backbone.encode(encoder, inputs, 5, "test", layer=layer)["mean"]
        short = backbone.encode(encoder, inputs, 5, "test", layer=layer, for_router=True)["mean"]
        torch.testing.assert_close(short, whole, rtol=0, atol=1e-6)
        if layer == 1:
            torch.testing.assert_close(whole, found[0].mean(1), rtol=0, atol=1e-6)
    assert layers_to_read(backbone.folder, None) == 2


def test_no_router_reads_an_early_layer_of_a_convolutional_encoder(tmp_path, task):
    save_timm(tmp_path / "model", "efficientnet")
    backbone = backbone_of(tmp_path / "model")
    with pytest.raises(UserError, match="no list of blocks") as raised:
        layers_to_read(backbone.folder, None)
    assert raised.value.key == "router.layer"
    encoder, inputs = backbone.encoder(backbone.load(backbone.folder, 2)), backbone.inputs(task, "test")
    for layer in (0, 1):
        with pytest.raises(UserError, match="no list of blocks"):
            backbone.encode(encoder, inputs, 5, "test", layer=layer)
        with pytest.raises(UserError, match="no list of blocks"):
            backbone.encode(encoder, inputs, 5, "test", layer=layer, for_router=True)
    features = backbone.encode(encoder, inputs, 5, "test")
    assert torch.equal(features["mean"], features["pooled"])
    read = backbone.encode(encoder, inputs, 5, "test", for_router=True)
    assert read.keys() == {"mean"}
    torch.testing.assert_close(read["mean"], features["mean"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["vit", "efficientnet"])
def test_dropout_is_set_everywhere_and_nowhere_else(tmp_path, task, kind):
    save_timm(tmp_path / "model", kind)
    backbone = backbone_of(tmp_path / "model")
    inputs = backbone.inputs(task, "test", range(4))
    batch = backbone.batch(inputs, range(4))
    for probability, differs in ((0.5, True), (0.0, False), (None, False)):
        model = backbone.new_expert(task, probability).train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        with torch.no_grad():
            assert torch.equal(model(**batch).logits, model(**batch).logits) != differs
        if probability and kind == "vit":
            rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
            assert rates == {0.5}


@pytest.mark.parametrize("saved", ["vit", "averaging_vit", "resnet", "efficientnet"], indirect=True)
def test_a_twin_answers_each_image_under_its_own_weights(saved, task, caplog):
    base, _, _ = saved
    backbone, generator = backbone_of(base, image_size=48), torch.Generator().manual_seed(0)
    encoder, scale = backbone.encoder(backbone.load(base, 2)), 0.1 if "vit" in base.parent.name else 0.03

    def drawn(*shape: int) -> torch.Tensor:
        return scale * torch.randn(shape, generator=generator)

    kept = {
        name: Factors(drawn(2, len(tensor), 4), drawn(2, 4).abs() * 10, drawn(2, tensor.shape[1], 4))
        if tensor.dim() == 2
        else drawn(2, *tensor.shape)
        for name, tensor in encoder.named_parameters()
    }
    twin = TwinMergedModel(backbone.encoder_with(encoder.state_dict()), kept, Exact())
    inputs = backbone.inputs(task, "test", range(5))
    weights = torch.rand(5, 2, generator=generator)
    found = backbone.encode(twin, inputs, 3, "test", weights)
    before = backbone.encode(backbone.encoder_with(encoder.state_dict()), inputs, 3, "test")
    assert (found["pooled"] - before["pooled"]).abs().max() > 0.05
    for row in range(5):
        merged = backbone.encoder_with(twin.merge_for(weights[row]))
        alone = backbone.encode(merged, backbone.inputs(task, "test", [row]), 1, "test")
        for name, value in alone.items():
            torch.testing.assert_close(found[name][row], value[0], rtol=1e-5, atol=1e-5)
    if "vit" in base.parent.name:
        assert "no routed form" not in caplog.text
        assert timm_source.largest_rank(base) == min(encoder.timm.blocks[0].mlp.fc1.weight.shape)
    else:
        assert timm_source.largest_rank(base) is None


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "resnet", "efficientnet"])
def test_it_learns_and_comes_back(tmp_path, task, kind):
    save_timm(tmp_path / "model", kind)
    backbone = backbone_of(tmp_path / "model")
    full_fine_tuning(backbone, task, FullFineTuning(**OPTIONS), 0, tmp_path / "expert", tmp_path / "scratch")
    model = backbone.load(tmp_path / "expert", 3)
    inputs = backbone.inputs(task, "test")
    features = backbone.encode(backbone.encoder(model), inputs, 8, "test")
    answers = backbone.head(backbone.head_state(model), 3)(features).argmax(-1)
    assert (answers == torch.tensor(task.splits["test"].labels)).float().mean() > 0.9
    assert model.config.id2label == {0: "red", 1: "green", 2: "blue"}
    stored = load_file(tmp_path / "expert/model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in stored.items())
    before = statistics_of(backbone.load(backbone.folder, 3))
    assert bool(before) == (kind != "vit")
    assert all(not torch.equal(stored[name], tensor) for name, tensor in before.items())
    config = json.loads((tmp_path / "expert/config.json").read_text())
    assert config["model_type"] == "timm"
    assert config["seen"]["mean"] == [0.5, 0.4, 0.3]


def test_low_rank_adapters_learn_where_there_are_linear_layers(tmp_path, task):
    save_timm(tmp_path / "vit", "vit")
    backbone, options = backbone_of(tmp_path / "vit"), LoraFineTuning(**OPTIONS, rank=4)
    lora_fine_tuning(backbone, task, options, 0, tmp_path / "expert", tmp_path / "scratch")
    start, model = backbone.load(backbone.folder, 3).state_dict(), backbone.load(tmp_path / "expert", 3).state_dict()
    changed = {name for name, tensor in model.items() if not torch.equal(tensor, start[name])}
    assert {
        "task_head.weight",
        "encoder.timm.blocks.1.attn.qkv.weight",
        "encoder.timm.blocks.0.mlp.fc2.weight",
    } < changed
    assert "encoder.timm.pos_embed" not in changed


@pytest.mark.parametrize("kind", ["resnet", "efficientnet"])
def test_low_rank_adapters_are_refused_where_there_are_none(tmp_path, task, kind):
    save_timm(tmp_path / "model", kind)
    with pytest.raises(UserError, match="no layer to adapt") as raised:
        lora_fine_tuning(
            backbone_of(tmp_path / "model"), task, LoraFineTuning(), 0, tmp_path / "expert", tmp_path / "x"
        )
    assert raised.value.key == "finetune.targets"


def test_a_mirror_fetches_no_pickle():
    run = plan(
        ["backbone=timm_resnet50", "tasks=vision", "tasks.names=[digits]", "merge_method=finetuned"], multirun=False
    ).jobs[0]
    model, *_ = needed([run])
    assert model.hub == ("timm/resnet50.a1_in1k", "model")
    assert {"*.json", "*.safetensors"} <= set(model.patterns)
    assert not any(pattern.endswith((".bin", ".pth", "*")) for pattern in model.patterns)


def test_joint_training_has_a_head_a_task(tmp_path, task):
    save_timm(tmp_path / "model", "resnet")
    backbone, tasks = backbone_of(tmp_path / "model"), [task, colour_task("others", seed=1)]
    start = backbone.load(backbone.folder, 3)
    encoder, heads, _ = train_jointly(backbone, tasks, FullFineTuning(**{**OPTIONS, "epochs": 1}), 0, tmp_path / "x")
    assert set(heads) == {"colours", "others"}
    assert set(heads["others"]) == {"task_head.weight", "task_head.bias"}
    assert encoder.keys() == backbone.encoder(start).state_dict().keys()
    assert not torch.equal(encoder["timm.conv1.0.weight"], start.encoder.timm.conv1[0].weight)
