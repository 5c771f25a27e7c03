"""Where CLIP's weights come from, what identifies them, and what cannot be taken."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_clip import MODEL, backbone_of, save_clip

from twin_merging.backbones.clip_source import CONFIG, WEIGHTS, locate_clip, repository, size_of
from twin_merging.compose import plan
from twin_merging.config import Clip
from twin_merging.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


DIGEST = """
import hashlib, sys
from pathlib import Path
import open_clip, torch
from twin_merging.backbones.clip import ClipBackbone
from twin_merging.config import Clip
open_clip.add_model_config(Path(sys.argv[1]))
torch.rand(int(sys.argv[2]))
backbone = ClipBackbone(Clip(model="tiny", pretrained=None), Path(), torch.device("cpu"), False)
digest = hashlib.sha256()
for name, tensor in backbone.load(Path(), 2).state_dict().items():
    digest.update(name.encode() + tensor.numpy().tobytes())
print(digest.hexdigest())
"""


def test_random_weights_are_the_same_in_every_process(tmp_path):
    (tmp_path / "tiny.json").write_text(json.dumps(MODEL))
    commands = [[sys.executable, "-c", DIGEST, str(tmp_path / "tiny.json"), seed] for seed in ("1", "2")]
    first, second = (subprocess.run(each, capture_output=True, text=True, check=True).stdout for each in commands)
    assert first == second
    assert len(first.strip()) == 64


def test_random_weights_are_said_to_be_random(tmp_path):
    source = locate_clip(Clip(pretrained=None), tmp_path, None)
    assert source.identity == {"random": "ViT-B-32", "seed": 0}
    assert locate_clip(Clip(pretrained=None, image_size=64), tmp_path, None).identity["image_size"] == 64
    assert size_of(Clip(pretrained=None), source.folder)[:2] == (12, 768)


def test_a_folder_is_identified_by_its_files(folder, tmp_path):
    files = locate_clip(Clip(pretrained=str(folder)), tmp_path, None).identity["files"]
    assert files == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (CONFIG, WEIGHTS)}


@pytest.mark.parametrize(
    ("model", "name"),
    [("ViT-B-32", "timm/vit_base_patch32_clip_224.openai"), ("ViT-L-14", "timm/vit_large_patch14_clip_224.openai")],
)
def test_a_tag_is_a_repository_of_the_hub(model, name):
    assert repository(Clip(model=model)) == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "ViT-B-23"}, r"(?s)backbone\.model: unknown model of open_clip.*nearest: +ViT-B-32$"),
        ({"pretrained": "opnai"}, r"(?s)backbone\.pretrained: unknown tag of ViT-B-32.*nearest: +openai$"),
        ({"model": "RN50", "pretrained": None}, "BatchNorms"),
        ({"model": "ViT-B-16-SigLIP", "pretrained": None}, "timm"),
        ({"model": "coca_ViT-B-32", "pretrained": None}, "pooler"),
        ({"pretrained": None, "image_size": 16}, "smaller than a patch"),
    ],
)
def test_what_cannot_be_taken_is_named(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        locate_clip(Clip(**options), tmp_path, None)


def test_weights_of_another_architecture_are_refused(tmp_path):
    folder = save_clip(tmp_path)
    content = json.loads((folder / CONFIG).read_text())
    content["model_cfg"]["embed_dim"] = 12
    (folder / CONFIG).write_text(json.dumps(content))
    with pytest.raises(UserError, match="cannot be loaded"):
        backbone_of(folder).load(folder, 2)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("finetune=lora", "finetune.name"),
        ("finetune.backbone_dropout=0.1", "finetune.backbone_dropout"),
    ],
)
def test_what_does_not_go_with_packed_attention_is_refused_before_any_work(override, key):
    with pytest.raises(UserError) as error:
        plan(["backbone=clip_vit_b32", "tasks=vision", "tasks.names=[mnist]", override], multirun=False)
    assert error.value.key == key
