"""What the tests of fine-tuning share."""

from __future__ import annotations

import pytest
import torch
from backbones.tiny_models import save_model

from twin_merging.backbones.sequence_classifier import SequenceClassifierBackbone
from twin_merging.config import SequenceClassifier


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> SequenceClassifierBackbone:
    folder = save_model(tmp_path_factory.mktemp("bert"), "bert")
    options = SequenceClassifier(pretrained=str(folder), max_length=16)
    return SequenceClassifierBackbone(options, folder, torch.device("cpu"), autocast=False)
