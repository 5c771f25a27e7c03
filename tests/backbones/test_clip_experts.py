"""CLIP as transformers saves it, whole or its image encoder alone, and fine-tuned encoders in open_clip's names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import MODEL, PREPROCESS, backbone_of, save_clip, save_in_transformers_form
from tiny_images import colour_task
from transformers import CLIPConfig, CLIPForImageClassification, CLIPModel, CLIPVisionModel

from twin_merging.backbones.clip import ClipBackbone
from twin_merging.backbones.clip_names import from_transformers
from twin_merging.backbones.clip_source import CONFIG, WEIGHTS, architecture_of, files_of, locate_clip, size_of
from twin_merging.config import Clip
from twin_merging.errors import UserError
from twin_merging.tasks.base import Task

CLOSE = {"rtol": 0, "atol": 1e-5}
VARIANTS = [{}, {"hidden_act": "gelu"}, {"layer_norm_eps": 1e-2}, {"num_attention_heads": 2}]


@pytest.fixture(scope="module")
def task() -> Task:
    return colour_task("colours")


def some_images(side: int = 32) -> torch.Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def embeddings(backbone: ClipBackbone, model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    return backbone.encoder(model)(images).pooler_output


# --- both encoders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vision", VARIANTS, ids=str)
def test_both_encoders_of_transformers_compute_the_same_here(tmp_path, task, vision):
    theirs = save_in_transformers_form(tmp_path, **vision)
    backbone, images = backbone_of(tmp_path), some_images()
    model = backbone.new_expert(task)
    with torch.no_grad():
        expected = theirs.get_image_features(images).pooler_output
        sentences = open_clip.SimpleTokenizer(context_length=32)([f"a photo of a {name}." for name in task.class_names])
        texts = theirs.get_text_features(sentences).pooler_output
        head = texts / texts.norm(dim=-1, keepdim=True) * theirs.logit_scale.exp()
    assert expected.std() > 0.1
    torch.testing.assert_close(embeddings(backbone, model, images), expected, **CLOSE)
    torch.testing.assert_close(model.head.weight, head, rtol=1e-5, atol=1e-5)
    assert list(backbone.processor.image_mean) == PREPROCESS["mean"]


def test_it_is_located_by_its_files_and_as_large_as_it_is(tmp_path):
    save_in_transformers_form(tmp_path)
    options = Clip(pretrained=str(tmp_path))
    identity = locate_clip(options, tmp_path, None).identity
    assert set(identity["files"]) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert size_of(options, tmp_path) == (2, 32, 4 * 2 * 32**2 * (4 + 2 * 3))
    assert files_of(Clip()) == (CONFIG, WEIGHTS)
    assert {CONFIG, WEIGHTS, *identity["files"]} < set(files_of(options))


def test_weights_in_shards_are_read(tmp_path):
    theirs = save_in_transformers_form(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    backbone, images = backbone_of(tmp_path), some_images()
    with torch.no_grad():
        expected = theirs.get_image_features(images).pooler_output
    torch.testing.assert_close(embeddings(backbone, backbone.load(tmp_path, 2), images), expected, **CLOSE)


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("text_config", {"vocab_size": 100}, "vocabulary"),
        ("text_config", {"hidden_act": "gelu"}, "two activations"),
        ("vision_config", {"hidden_act": "relu"}, "two activations"),
        ("vision_config", {"hidden_size": "wide"}, "cannot be read"),
    ],
)
def test_what_open_clip_cannot_compute_is_refused(tmp_path, part, change, says):
    save_in_transformers_form(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content[part].update(change)
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=says):
        architecture_of(Clip(pretrained=str(tmp_path)), tmp_path)


def test_images_that_are_resized_in_another_way_are_refused(tmp_path):
    save_in_transformers_form(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "resample": 1}))
    with pytest.raises(UserError, match="cannot be read"):
        architecture_of(Clip(pretrained=str(tmp_path)), tmp_path)


def test_openais_b32_has_the_same_tensors_in_both_forms():
    """By its real configuration, without numbers."""
    with torch.device("meta"):
        theirs, ours = CLIPModel(CLIPConfig()), open_clip.CLIP(**open_clip.get_model_config("ViT-B-32"))
    found = {name: tensor.shape for name, tensor in from_transformers(theirs.state_dict()).items()}
    assert found == {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert len(found) > 300


# --- image encoders of transformers -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_in_transformers_form(folder)
    return folder


def save_vision_model(folder: Path, base: Path, **settings) -> CLIPVisionModel:
    """An image encoder alone, as if fine-tuned from the base's."""
    torch.manual_seed(1)
    model = CLIPVisionModel.from_pretrained(base, **settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_image_encoder_of_transformers_is_an_expert(tmp_path, base, task, dtype):
    theirs = save_vision_model(tmp_path, base)
    assert any(name.startswith("vision_model.") for name in load_file(tmp_path / "model.safetensors"))
    if dtype == torch.float16:
        theirs.half().save_pretrained(tmp_path)
        theirs.float()
    backbone, images, whole = backbone_of(base), some_images(), CLIPModel.from_pretrained(base)
    model = backbone.foreign_expert(tmp_path, task)
    with torch.no_grad():
        expected = whole.visual_projection(theirs(images).pooler_output)
    torch.testing.assert_close(embeddings(backbone, model, images), expected, **CLOSE)
    start = backbone.new_expert(task)
    assert not torch.allclose(embeddings(backbone, start, images), expected, atol=0.1)
    assert torch.equal(model.head.weight, start.head.weight)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    backbone.check_head_reads_first_token(model)


def test_names_without_a_prefix_and_the_whole_model_are_experts_too(tmp_path, base, task):
    theirs = save_vision_model(tmp_path / "prefixed", base)
    plain, images, backbone = tmp_path / "plain", some_images(), backbone_of(base)
    shutil.copytree(tmp_path / "prefixed", plain)
    state = {
        name.removeprefix("vision_model."): x for name, x in load_file(plain / "model.safetensors").items()
    }  # as transformers has them inside
    save_file(state, plain / "model.safetensors")
    found = [backbone.foreign_expert(each, task) for each in (tmp_path / "prefixed", plain)]
    torch.testing.assert_close(*(embeddings(backbone, model, images) for model in found), rtol=0, atol=0)
    whole = save_in_transformers_form(tmp_path / "whole", seed=5)  # its projection is its own
    with torch.no_grad():
        expected = whole.get_image_features(images).pooler_output
    own = embeddings(backbone, backbone.foreign_expert(tmp_path / "whole", task), images)
    torch.testing.assert_close(own, expected, **CLOSE)
    assert theirs.config.model_type == "clip_vision_model"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_attention_heads": 2}, "heads 2"),
        ({"hidden_act": "gelu"}, "activation gelu"),
        ({"layer_norm_eps": 1e-2}, "layer_norm_eps 0.01"),
    ],
)
def test_what_has_the_same_shapes_and_computes_otherwise_is_refused(tmp_path, base, task, change, says):
    save_vision_model(tmp_path, base, **change)
    with pytest.raises(UserError, match="another architecture") as caught:
        backbone_of(base).foreign_expert(tmp_path, task)
    assert caught.value.found == says


def test_a_head_over_patches_is_none_that_text_makes(tmp_path, base, task):
    CLIPForImageClassification.from_pretrained(base).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a head that reads otherwise"):
        backbone_of(base).foreign_expert(tmp_path, task)


# --- image encoders of open_clip --------------------------------------------------------------------------------------

FORMS = ["", "visual.", "model.visual.", "image_encoder.model.visual."]


def fine_tuned(seed: int = 3) -> dict[str, torch.Tensor]:
    """The state of a tiny CLIP, as if fine-tuned."""
    torch.manual_seed(seed)
    return {name: x.contiguous() for name, x in open_clip.CLIP(**json.loads(json.dumps(MODEL))).state_dict().items()}


@pytest.mark.parametrize("prefix", FORMS)
def test_open_clips_names_are_read_behind_any_prefix(tmp_path, task, prefix):
    base, state = save_clip(tmp_path / "base"), fine_tuned()
    outer = prefix.removesuffix("visual.")
    (tmp_path / "expert").mkdir()
    kept = {outer + name: x for name, x in state.items()} if prefix else tower_of(state)
    save_file(kept, tmp_path / "expert" / "fine_tuned.safetensors")
    backbone = backbone_of(base)
    model = backbone.foreign_expert(tmp_path / "expert", task)
    found = backbone.encoder(model).visual.state_dict()
    assert found.keys() == tower_of(state).keys()
    assert all(torch.equal(found[name], x) for name, x in tower_of(state).items())


def tower_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("visual."): x for name, x in state.items() if name.startswith("visual.")}


def test_a_folder_of_open_clips_is_an_expert_if_its_configuration_is_the_bases(tmp_path, task):
    base, other = save_clip(tmp_path / "base"), save_clip(tmp_path / "other", seed=4)
    backbone = backbone_of(base)
    found = backbone.encoder(backbone.foreign_expert(other, task)).visual.state_dict()
    assert torch.equal(found["proj"], load_file(other / WEIGHTS)["visual.proj"])
    content = json.loads((other / CONFIG).read_text())
    content["model_cfg"]["quick_gelu"] = True
    (other / CONFIG).write_text(json.dumps(content))
    with pytest.raises(UserError, match="another architecture") as caught:
        backbone.foreign_expert(other, task)
    assert caught.value.expected == "activation gelu"


def test_positions_are_resized_as_the_bases_are(tmp_path, task):
    base, state = save_clip(tmp_path / "base"), fine_tuned()
    (tmp_path / "expert").mkdir()
    save_file(tower_of(state), tmp_path / "expert" / "model.safetensors")
    backbone = backbone_of(base, image_size=48)
    found = backbone.encoder(backbone.foreign_expert(tmp_path / "expert", task)).visual.positional_embedding
    whole = open_clip.CLIP(**{**MODEL, "vision_cfg": {**MODEL["vision_cfg"], "image_size": 48}})
    save_file(state, tmp_path / "whole.safetensors")
    open_clip.load_checkpoint(whole, str(tmp_path / "whole.safetensors"))
    assert torch.equal(found, whole.visual.positional_embedding)
    wide = {**tower_of(state), "positional_embedding": torch.zeros(37, 32)}
    save_file(wide, tmp_path / "expert" / "model.safetensors")
    with pytest.raises(UserError, match="wrong shape"):  # which nobody asked to resize
        backbone_of(base).foreign_expert(tmp_path / "expert", task)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: {name: x for name, x in state.items() if "class_embedding" not in name}, "0 class tokens"),
        (lambda state: {**state, "other.class_embedding": torch.zeros(32)}, "2 class tokens"),
        (lambda state: {name: x for name, x in state.items() if not name.endswith("conv1.weight")}, "is missing"),
        (lambda state: {**state, "visual.more": torch.zeros(2)}, "does not have"),
        (lambda state: {**state, "visual.ln_pre.bias": torch.full((32,), float("nan"))}, "NaN"),
    ],
    ids=["none", "two", "missing", "more", "nan"],
)
def test_what_is_no_image_encoder_of_the_bases_is_refused(tmp_path, task, change, says):
    base = save_clip(tmp_path / "base")
    (tmp_path / "expert").mkdir()
    save_file(change(fine_tuned()), tmp_path / "expert" / "model.safetensors")
    with pytest.raises(UserError) as caught:
        backbone_of(base).foreign_expert(tmp_path / "expert", task)
    assert says in str(caught.value)


def test_no_safetensors_are_no_expert(tmp_path, task):
    with pytest.raises(UserError, match="no safetensors checkpoint"):
        backbone_of(save_clip(tmp_path / "base")).foreign_expert(tmp_path, task)
