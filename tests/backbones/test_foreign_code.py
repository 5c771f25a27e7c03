"""Code that comes with weights or a tokenizer does not run unless ``backbone.trust_remote_code`` says so."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tiny_models import save_model

from twin_merging.backbones.sequence_classifier import SequenceClassifierBackbone
from twin_merging.config import SequenceClassifier
from twin_merging.errors import UserError
from twin_merging.registry import CONFIGS

CODE = "from pathlib import Path\nPath({marker!r}).touch()\n"
NAMES = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that the folder's code makes when it runs."""
    return tmp_path / "it_ran"


@pytest.fixture(params=["bert", "own"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, marker: Path) -> Path:
    """A model that names code of its own, as an architecture that transformers knows and as one that it does not."""
    folder = save_model(tmp_path / "model", "bert")
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        content["auto_map"] = (
            {each: "own.Own" for each in NAMES} if name == "config.json" else {"AutoTokenizer": ["own.Own", None]}
        )
        content |= {"model_type": request.param} if name == "config.json" else {"tokenizer_class": "Own"}
        (folder / name).write_text(json.dumps(content))
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    return folder


def backbone(folder: Path, **options) -> SequenceClassifierBackbone:
    given = SequenceClassifier(pretrained=str(folder), **options)
    return SequenceClassifierBackbone(given, folder, torch.device("cpu"), autocast=False)


def attempts(made: SequenceClassifierBackbone, folder: Path) -> list:
    """All ways in which a folder is read."""
    return [
        lambda: made.load(folder, num_labels=3), lambda: made.tokenize([("a text",)]), lambda: made._all_dropouts(0.0),
        lambda: made.head({}, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("way", range(4))
def test_it_does_not_run_by_itself(way: int, folder: Path, marker: Path):
    # a model that cannot be without its code is refused; one that can is read as transformers has it
    with suppress(UserError, ValueError, RuntimeError, OSError, KeyError):
        attempts(backbone(folder), folder)[way]()
    assert not marker.exists()


def test_it_runs_where_it_is_asked_for(folder: Path, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises((UserError, AttributeError)):  # the module has no such class
        backbone(folder, trust_remote_code=True).load(folder, num_labels=3)
    assert marker.exists()


def test_no_configuration_asks_for_it():
    for path in CONFIGS.rglob("*.yaml"):
        assert OmegaConf.select(OmegaConf.load(path), "trust_remote_code", default=False) is False
        assert not OmegaConf.select(OmegaConf.load(path), "backbone.trust_remote_code", default=False), path
