"""Which of timm's models are taken, and that any other is refused with what was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tiny_images import backbone_of as backbone_of_transformers
from tiny_images import colour_task, save_encoder
from tiny_timm import backbone_of, save_timm

from twin_merging.backbones.timm_source import check_form, locate_timm, published, refuse_timms
from twin_merging.config import Timm
from twin_merging.errors import UserError
from twin_merging.tasks.base import Task


@pytest.fixture(scope="module")
def task() -> Task:
    return colour_task("colours")


def test_a_model_without_a_classifier_is_taken(tmp_path, task):
    save_timm(tmp_path / "model", "vit", num_classes=0)
    backbone = backbone_of(tmp_path / "model")
    backbone.check_head_reads_first_token(backbone.new_expert(task))


def edit(folder: Path, **changed) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_an_unknown_architecture_is_refused_with_the_nearest(tmp_path):
    save_timm(tmp_path / "model", "resnet")
    edit(tmp_path / "model", architecture="resnet5o")
    with pytest.raises(UserError, match="unknown architecture") as raised:
        check_form(tmp_path / "model")
    assert raised.value.key.endswith("config.json: architecture")
    assert timm.is_model(raised.value.nearest)
    assert raised.value.nearest.startswith("resnet5")


def test_a_folder_without_safetensors_is_refused_though_it_has_a_pickle(tmp_path):
    model = save_timm(tmp_path / "model", "resnet")
    (tmp_path / "model/model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "model/pytorch_model.bin")
    with pytest.raises(UserError, match="no weights") as raised:
        check_form(tmp_path / "model")
    assert "pickled weights are not read" in str(raised.value)


def test_transformers_form_is_refused_here_and_timms_there(tmp_path):
    save_encoder(tmp_path / "vit", "vit")
    with pytest.raises(UserError, match="no model in timm's form") as raised:
        locate_timm(Timm(pretrained=str(tmp_path / "vit")), tmp_path, None)
    assert (raised.value.key, "model_type vit" in str(raised.value)) == ("backbone.pretrained", True)
    refuse_timms(tmp_path / "vit")
    save_timm(tmp_path / "resnet", "resnet")
    with pytest.raises(UserError, match="in timm's form") as raised:
        refuse_timms(tmp_path / "resnet")
    assert (raised.value.key, raised.value.expected) == ("backbone.name", "timm")
    assert backbone_of_transformers(tmp_path / "vit").load(tmp_path / "vit", 2)


def damage(folder: Path, how: str) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    name = next(name for name in state if name.endswith("bn1.running_mean" if how != "head" else "fc.weight"))
    if how == "missing":
        del state[name]
    elif how == "shape":
        state[name] = state[name][:-1].clone()
    elif how == "nan":
        state[name][0] = torch.nan
    elif how == "more":
        state["layer9.weight"] = torch.ones(3)
    elif how == "head":
        state[name] = state[name][:2].clone()
    save_file(state, path)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("how", "says"),
    [("missing", "Missing key"), ("shape", "size mismatch"), ("nan", "NaN"), ("more", "Unexpected key"), ("head", "size mismatch"), ("cut", "cannot load")],
)  # fmt: skip
def test_damaged_weights_are_refused(tmp_path, how, says):
    save_timm(tmp_path / "model", "resnet")
    damage(tmp_path / "model", how)
    with pytest.raises(UserError, match=says):
        published(tmp_path / "model", None)


@pytest.mark.parametrize(
    ("more", "says"), [({"in_chans": 1}, "three channels"), ({"global_pool": ""}, "no vector an image")]
)
def test_what_has_no_vector_of_a_colour_image_is_refused(tmp_path, more, says):
    if "in_chans" in more:
        save_timm(tmp_path / "model", "resnet", **more)
    else:
        save_timm(tmp_path / "model", "resnet", num_classes=0)
        edit(tmp_path / "model", model_args=more, global_pool="")
    with pytest.raises(UserError, match=says):
        published(tmp_path / "model", None)


def test_a_size_that_the_architecture_cannot_see_is_refused(tmp_path):
    save_timm(tmp_path / "model", "averaging_vit")
    with pytest.raises(UserError, match="cannot load it at 8 pixels") as raised:
        published(tmp_path / "model", 8)  # half a patch
    assert raised.value.key == "backbone.image_size"


def test_an_expert_that_computes_otherwise_is_refused_though_its_tensors_fit(tmp_path):
    save_timm(tmp_path / "base", "tf_efficientnet_lite0")
    save_timm(tmp_path / "other", "efficientnet_lite0")
    with pytest.raises(UserError, match="another architecture") as raised:
        backbone_of(tmp_path / "base").load(tmp_path / "other", 3)
    assert raised.value.expected == "architecture tf_efficientnet_lite0"


def test_a_published_head_has_an_output_a_class(tmp_path):
    save_timm(tmp_path / "base", "resnet")
    save_timm(tmp_path / "five", "resnet", num_classes=5)
    with pytest.raises(UserError, match="an output a class") as raised:
        backbone_of(tmp_path / "base").load(tmp_path / "five", 3)
    assert raised.value.found == "5 outputs"


def test_a_published_head_that_reads_more_is_refused(tmp_path):
    """Of a distilled one two classifiers answer together, each from a token of its own."""
    small = {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2}
    for seed, name in enumerate(("base", "expert")):
        save_timm(tmp_path / name, "deit_tiny_distilled_patch16_224", seed, **small)
    backbone = backbone_of(tmp_path / "base")
    backbone.check_head_reads_first_token(backbone.load(backbone.folder, 3))
    with pytest.raises(UserError, match="one linear layer") as raised:
        backbone.load(tmp_path / "expert", 3)
    assert raised.value.found == "none"


def test_a_published_head_says_its_classes(tmp_path):
    save_timm(tmp_path / "model", "resnet", config={"label_names": ["blue", "red", "green"]})
    about = backbone_of(tmp_path / "model").about(tmp_path / "model")
    assert about == {"model_type": "timm", "id2label": {0: "blue", 1: "red", 2: "green"}}
