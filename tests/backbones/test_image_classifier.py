"""Image encoders with heads: what the model sees, what heads read, and that it learns."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from backbones.tiny_batchnorm import save_resnet
from PIL import Image
from tiny_images import backbone_of, colour_task, png, save_encoder
from transformers import AutoImageProcessor

from twin_merging.backbones.features import read_by_head
from twin_merging.config import Exact, FullFineTuning, LoraFineTuning
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.errors import UserError
from twin_merging.experts import fine_tuning
from twin_merging.experts.fine_tuning import full_fine_tuning
from twin_merging.experts.lora import lora_fine_tuning
from twin_merging.sparsifiers.svd import Factors
from twin_merging.tasks.base import Split, Task

KINDS = ["dinov2", "vit", "resnet"]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    save = save_resnet if request.param == "resnet" else partial(save_encoder, kind=request.param)
    return save(tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def task() -> Task:
    return colour_task("colours")


def test_the_model_sees_what_its_processor_makes(folder, task):
    backbone = backbone_of(folder)
    inputs = backbone.inputs(task, "test", [3, 0, 5])
    images = [Image.open(io.BytesIO(task.images[task.splits["test"].texts[row][0]])) for row in (3, 0, 5)]
    expected = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")["pixel_values"]
    found = backbone.batch(inputs, [0, 1, 2])["pixel_values"]
    torch.testing.assert_close(found, expected, rtol=0, atol=0.5 / 255 / 0.2 + 1e-5)  # half a step of rounding, over σ
    assert inputs.lengths == [16 if folder.name.startswith("resnet") else 17] * 3
    assert backbone.batch(inputs, [1])["pixel_values"].equal(found[1:2])


@pytest.mark.parametrize("size", [16, 48])
def test_another_size_is_seen(tmp_path, task, size):
    backbone = backbone_of(save_encoder(tmp_path, "dinov2"), image_size=size)
    inputs = backbone.inputs(task, "test", [0])
    assert backbone.batch(inputs, [0])["pixel_values"].shape == (1, 3, size, size)
    assert inputs.lengths == [(size // 8) ** 2 + 1]
    encoder = backbone.encoder_with(backbone.encoder(backbone.load(backbone.folder, 2)).state_dict())
    assert backbone.encode(encoder, inputs, 2, "test")["mean"].shape == (1, 32)


def test_heads_answer_from_features_as_the_whole_model_does(folder, task):
    backbone = backbone_of(folder)
    model = backbone.new_expert(task)
    backbone.check_head_reads_first_token(model)
    inputs = backbone.inputs(task, "validation")
    features = backbone.encode(backbone.encoder(model), inputs, 7, "test")
    head = backbone.head(backbone.head_state(model), 3)
    with torch.inference_mode():
        expected = model(**backbone.batch(inputs, range(len(inputs.rows)))).logits
    torch.testing.assert_close(head(features), expected, rtol=0, atol=1e-5)
    read = {"dinov2": "first_and_rest", "vit": "first", "resnet": "pooled"}
    assert read_by_head(features) == read[model.config.model_type]


def test_a_twin_answers_each_image_under_its_own_weights(folder, task):
    backbone, generator = backbone_of(folder), torch.Generator().manual_seed(0)
    start = backbone.encoder(backbone.load(folder, 2)).state_dict()

    def drawn(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    kept = {
        name: Factors(drawn(2, len(tensor), 4), drawn(2, 4).abs(), drawn(2, tensor.shape[1], 4))
        if tensor.dim() == 2
        else drawn(2, *tensor.shape)
        for name, tensor in start.items()
        if tensor.is_floating_point()
    }
    twin = TwinMergedModel(backbone.encoder_with(start), kept, Exact())
    inputs = backbone.inputs(task, "test", range(5))
    weights = torch.rand(5, 2, generator=generator)
    found = backbone.encode(twin, inputs, 3, "test", weights)
    for row in range(5):
        merged = backbone.encoder_with(twin.merge_for(weights[row]))
        alone = backbone.encode(merged, backbone.inputs(task, "test", [row]), 1, "test")
        for name, value in alone.items():
            torch.testing.assert_close(found[name][row], value[0], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_it_learns(folder, task, kind, tmp_path):
    backbone = backbone_of(folder)
    options = {"epochs": 6, "lr": 3e-3, "head_lr": 1e-2, "batch_size": 8}
    if (folder.name.startswith("resnet"), kind) == (True, "lora"):
        with pytest.raises(UserError, match="no layer to adapt"):
            lora_fine_tuning(backbone, task, LoraFineTuning(**options, rank=4), 0, tmp_path / "expert", tmp_path)
        return
    if kind == "full":
        full_fine_tuning(backbone, task, FullFineTuning(**options), 0, tmp_path / "expert", tmp_path / "scratch")
    else:
        lora_fine_tuning(
            backbone, task, LoraFineTuning(**options, rank=4), 0, tmp_path / "expert", tmp_path / "scratch"
        )
    model = backbone.load(tmp_path / "expert", 3)
    inputs = backbone.inputs(task, "test")
    features = backbone.encode(backbone.encoder(model), inputs, 8, "test")
    answers = backbone.head(backbone.head_state(model), 3)(features).argmax(-1)
    assert (answers == torch.tensor(task.splits["test"].labels)).float().mean() > 0.9
    assert (tmp_path / "expert" / "preprocessor_config.json").is_file()
    assert model.config.id2label == {0: "red", 1: "green", 2: "blue"}


def test_a_grey_image_is_seen_in_three_channels(folder, task):
    grey = png(np.full((9, 5), 200, np.uint8))
    alone = replace(task, splits={**task.splits, "test": Split([("grey",)], [0])}, images={"grey": grey})
    seen = backbone_of(folder).inputs(alone, "test").rows[0]["pixel_values"]
    assert seen.eq(200).all()


def test_texts_are_refused(folder, task):
    with pytest.raises(UserError, match="sees images"):
        backbone_of(folder).inputs(replace(task, images=None), "test")


def test_a_folder_without_an_image_processor_is_refused(tmp_path, task):
    folder = save_encoder(tmp_path, "vit")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="cannot be read") as raised:
        backbone_of(folder).inputs(task, "test")
    assert raised.value.key == "backbone.pretrained"


def test_the_chosen_epoch_is_restored_whole(folder, task, tmp_path, monkeypatch):
    """Of encoders, too, whose weights have other names in published files than in the model."""
    scores = iter([1.0, 0.5])
    monkeypatch.setitem(fine_tuning.metrics, "accuracy", lambda answers, labels: next(scores))
    found = []
    for epochs in (1, 2):  # at a constant rate, so that the first epochs are alike
        options = FullFineTuning(epochs=epochs, lr=1e-3, batch_size=8, warmup=0, scheduler="constant_with_warmup")
        backbone, scores = backbone_of(folder), iter([1.0, 0.5])
        full_fine_tuning(backbone, task, options, 0, tmp_path / f"expert{epochs}", tmp_path / f"scratch{epochs}")
        found.append(backbone.load(tmp_path / f"expert{epochs}", 3).state_dict())
    assert json.loads((tmp_path / "expert2" / "expert.json").read_text())["choice"]["chosen"] == 1
    assert [name for name, tensor in found[0].items() if not tensor.equal(found[1][name])] == []
