"""CLIP: what its image encoder sees, how text makes its heads, and that the encoder alone learns and merges."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from tiny_clip import MODEL, PREPROCESS, backbone_of, save_clip
from tiny_images import colour_task

from twin_merging.backbones.clip import ClipBackbone
from twin_merging.backbones.clip_source import WEIGHTS
from twin_merging.backbones.features import read_by_head
from twin_merging.backbones.zero_shot import embed, templates_of
from twin_merging.config import Exact, FullFineTuning
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.errors import UserError
from twin_merging.experts.fine_tuning import full_fine_tuning
from twin_merging.experts.multitask import train_jointly
from twin_merging.sparsifiers.svd import Factors
from twin_merging.tasks.base import Task

PUBLISHED = {"stanford_cars": 8, "dtd": 8, "eurosat": 3, "gtsrb": 3, "mnist": 1, "svhn": 1, "resisc45": 18, "sun397": 2}
OPTIONS = {"epochs": 6, "lr": 3e-3, "batch_size": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def task() -> Task:
    return colour_task("colours")


def whole_of(folder: Path) -> torch.nn.Module:
    model = open_clip.CLIP(**copy.deepcopy(MODEL))
    open_clip.load_checkpoint(model, str(folder / WEIGHTS))
    return model.eval()


def loss_of(backbone: ClipBackbone, model: torch.nn.Module, task: Task) -> float:
    inputs = backbone.inputs(task, "train")
    batch = backbone.batch(inputs, range(len(inputs.rows)))
    with torch.inference_mode():
        return model(**batch, labels=torch.tensor(task.splits["train"].labels)).loss.item()


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preprocess", [{}, {"resize_mode": "squash"}, {"interpolation": "bilinear"}])
def test_the_model_sees_what_open_clip_makes(tmp_path, task, preprocess):
    backbone = backbone_of(save_clip(tmp_path, preprocess=preprocess))
    inputs = backbone.inputs(task, "test", [3, 0, 5])
    make = open_clip.image_transform(32, is_train=False, **{**PREPROCESS, **preprocess})
    keys = [task.splits["test"].texts[row][0] for row in (3, 0, 5)]
    expected = torch.stack([make(Image.open(io.BytesIO(task.images[key]))) for key in keys])
    found = backbone.batch(inputs, [0, 1, 2])["pixel_values"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert inputs.lengths == [17] * 3


def test_another_size_is_seen_by_other_positions(folder, task):
    backbone = backbone_of(folder, image_size=48)
    inputs = backbone.inputs(task, "test", [0])
    assert backbone.batch(inputs, [0])["pixel_values"].shape == (1, 3, 48, 48)
    assert inputs.lengths == [37]
    encoder = backbone.encoder(backbone.load(folder, 2))
    assert encoder.visual.positional_embedding.shape == (37, 32)
    assert backbone.encode(encoder, inputs, 2, "test")["pooled"].shape == (1, 24)


# --- heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("templates", [None, {"colours": ["{}", "the colour {}!"]}])
def test_a_head_is_what_the_text_encoder_says_of_each_class(folder, task, templates):
    found = backbone_of(folder, templates=templates).new_expert(task).head.weight
    model, tokenize = whole_of(folder).double(), open_clip.SimpleTokenizer(context_length=32)
    for name, row in zip(task.class_names, found, strict=True):
        total = torch.zeros(24, dtype=torch.float64)
        sentences = [text.replace("{}", name) for text in (templates or {}).get("colours", ["a photo of a {}."])]
        for sentence in sentences:
            with torch.no_grad():
                (embedding,) = model.encode_text(tokenize([sentence]))
            total += embedding / embedding.square().sum().sqrt()
        mean = total / len(sentences)
        expected = mean / mean.square().sum().sqrt() * model.logit_scale.exp()
        torch.testing.assert_close(row.double(), expected, rtol=0, atol=1e-4)
    assert not found.requires_grad


@pytest.mark.parametrize("changed", [{}, {"no_causal_mask": True}, {"pool_type": "last"}])
def test_sentences_are_read_no_further_than_their_end(changed):
    """Where a token sees none after it; else the whole context is read, and the answer is open_clip's all the same."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**{**copy.deepcopy(MODEL), "text_cfg": {**MODEL["text_cfg"], **changed}}).eval()
    tokens = open_clip.SimpleTokenizer(context_length=32)(["a dog", "a photo of a long name, a plane", "the red"])
    tokens[:, 2] = 0  # which is a word's beginning too
    read, before = [], list(model.state_dict())
    model.transformer.register_forward_pre_hook(lambda _, args: read.append(args[0].shape[1]))
    with torch.inference_mode():
        found, expected = embed(model, tokens), model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert read == [11 if not changed else 32, 32]
    assert list(model.state_dict()) == before


def test_a_head_is_made_once_for_all_who_remember(folder, task):
    backbone, kept = backbone_of(folder), {}

    def remember(what, label, determined_by, make):
        key = json.dumps([what, label, determined_by])
        if key not in kept:
            kept[key] = make()
        return kept[key]

    backbone.remember = remember
    first = backbone.new_expert(task).head.weight
    (only,) = kept.values()
    kept[next(iter(kept))] = 2 * only
    assert torch.equal(backbone.new_expert(task).head.weight, 2 * first)
    backbone.new_expert(colour_task("others"))
    assert len(kept) == 2


def test_the_eight_tasks_have_the_sentences_that_clip_has():
    assert {name: len(templates_of(name)) for name in PUBLISHED} == PUBLISHED
    assert templates_of("pets") == ["a photo of a {}."]
    with pytest.raises(UserError, match=r"backbone\.templates\.pets: a sentence has no place for the class"):
        templates_of("pets", {"pets": ["a photo"]})


def test_heads_answer_from_features_as_the_whole_model_does(folder, task):
    backbone = backbone_of(folder)
    model = backbone.new_expert(task)
    backbone.check_head_reads_first_token(model)
    inputs = backbone.inputs(task, "validation")
    features = backbone.encode(backbone.encoder(model), inputs, 7, "test")
    assert read_by_head(features) == "pooled"
    answers = backbone.head(backbone.head_state(model), 3)(features)
    images = backbone.batch(inputs, range(len(inputs.rows)))["pixel_values"]
    with torch.inference_mode():
        embeddings = whole_of(folder).encode_image(images, normalize=True)
        torch.testing.assert_close(answers, embeddings @ model.head.weight.T, rtol=0, atol=1e-4)


def test_routers_read_the_mean_of_the_patches_states(folder, task):
    backbone = backbone_of(folder)
    encoder, inputs = backbone.encoder(backbone.load(folder, 2)), backbone.inputs(task, "test")
    last = backbone.encode(encoder, inputs, 5, "test")["mean"]
    assert last.shape == (24, 32)
    for layer in (-1, 0, 1, 2):
        whole = backbone.encode(encoder, inputs, 5, "test", layer=layer)["mean"]
        short = backbone.encode(encoder, inputs, 5, "test", layer=layer, for_router=True)["mean"]
        torch.testing.assert_close(short, whole, rtol=0, atol=1e-6)
        assert torch.equal(whole, last) == (layer in (-1, 2))


@pytest.mark.parametrize(
    ("vision", "shorter"),
    [
        ({}, True), ({"ls_init_value": 0.3}, True), ({"final_ln_after_pool": True}, True), ({"pool_type": "avg"}, False),
        ({"block_type": "custom"}, False),
    ],
)  # fmt: skip
def test_an_embedding_alone_is_the_same_and_goes_back_alike(tmp_path, task, vision, shorter):
    """Where the class token makes it, its last block computes that token alone."""
    backbone = backbone_of(save_clip(tmp_path, vision_cfg={**MODEL["vision_cfg"], **vision}))
    encoder = backbone.encoder(backbone.new_expert(task)).eval()
    batch, seen, found = backbone.batch(backbone.inputs(task, "test"), range(5)), [], []
    encoder.visual.transformer.resblocks[-1].mlp.register_forward_hook(lambda *given: seen.append(given[2].shape[1]))
    for run in (lambda: encoder(**batch).pooler_output, lambda: backbone.embedded(encoder, batch)["pooled"]):
        encoder.requires_grad_().zero_grad()
        pooled = run()
        pooled.square().sum().backward()
        found.append({"pooled": pooled, **{name: one.grad.clone() for name, one in encoder.named_parameters()}})
    assert seen == [17, 1 if shorter else 17]
    for name, whole in found[0].items():
        torch.testing.assert_close(found[1][name], whole, rtol=1e-4, atol=1e-5 * whole.detach().abs().max().item())
    assert encoder(**batch).last_hidden_state.shape[1] > 1


def test_a_model_that_learns_answers_as_one_that_does_not(folder, task):
    """By fewer tokens of the last block."""
    backbone, seen = backbone_of(folder), []
    model, batch = backbone.new_expert(task), backbone.batch(backbone.inputs(task, "test"), range(5))
    last = model.encoder.visual.transformer.resblocks[-1]
    last.register_forward_hook(lambda *given: seen.append(given[2].shape[1]))
    with torch.inference_mode():
        answers = [model.train(mode)(**batch).logits for mode in (True, False)]
    torch.testing.assert_close(*answers, rtol=0, atol=1e-4)
    assert seen == [1, 17]


# --- merging and learning ---------------------------------------------------------------------------------------------


def test_a_twin_answers_each_image_under_its_own_weights(folder, task, caplog):
    backbone, generator = backbone_of(folder), torch.Generator().manual_seed(0)
    start = backbone.encoder(backbone.load(folder, 2)).state_dict()

    def drawn(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(shape, generator=generator)

    kept = {
        name: Factors(drawn(2, len(tensor), 4), drawn(2, 4).abs() * 20, drawn(2, tensor.shape[1], 4))
        if tensor.dim() == 2
        else drawn(2, *tensor.shape)
        for name, tensor in start.items()
    }
    assert {"visual.class_embedding", "visual.proj", "visual.transformer.resblocks.1.attn.in_proj_weight"} <= set(kept)
    twin = TwinMergedModel(backbone.encoder_with(start), kept, Exact())
    inputs = backbone.inputs(task, "test", range(5))
    weights = torch.rand(5, 2, generator=generator)
    found = backbone.encode(twin, inputs, 3, "test", weights)
    before = backbone.encode(backbone.encoder_with(start), inputs, 3, "test")
    assert (found["pooled"] - before["pooled"]).abs().max() > 0.1
    for row in range(5):
        merged = backbone.encoder_with(twin.merge_for(weights[row]))
        alone = backbone.encode(merged, backbone.inputs(task, "test", [row]), 1, "test")
        for name, value in alone.items():
            torch.testing.assert_close(found[name][row], value[0], rtol=0, atol=1e-5)
    assert "no routed form" not in caplog.text


def test_the_image_encoder_learns_and_the_head_does_not(folder, task, tmp_path):
    backbone = backbone_of(folder)
    start = backbone.new_expert(task)
    full_fine_tuning(backbone, task, FullFineTuning(**OPTIONS), 0, tmp_path / "expert", tmp_path / "scratch")
    model = backbone.load(tmp_path / "expert", 3)
    assert loss_of(backbone, model, task) < 0.5 * loss_of(backbone, start, task)
    assert torch.equal(model.head.weight, start.head.weight)
    changed = [
        name
        for name, x in start.encoder.named_parameters()
        if not torch.equal(x, model.get_parameter(f"encoder.{name}"))
    ]
    assert len(changed) == len(list(start.encoder.parameters()))
    assert model.config.id2label == {0: "red", 1: "green", 2: "blue"}
    assert (
        json.loads((tmp_path / "expert" / "preprocessor_config.json").read_text())["image_mean"] == PREPROCESS["mean"]
    )
    model.save_pretrained(tmp_path / "again", save_original_format=False)
    again = backbone.load(tmp_path / "again", 3).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_joint_training_changes_no_head(folder, task, tmp_path):
    backbone, tasks = backbone_of(folder), [task, colour_task("others", seed=1)]
    encoder, heads, _ = train_jointly(backbone, tasks, FullFineTuning(**{**OPTIONS, "epochs": 1}), 0, tmp_path)
    for each in tasks:
        start = backbone.new_expert(each)
        assert torch.equal(heads[each.name]["head.weight"], start.head.weight)
    assert not torch.equal(encoder["visual.proj"], start.encoder.visual.proj)
