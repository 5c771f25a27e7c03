"""An encoder with BatchNorm is judged and kept with statistics of its own weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backbones.tiny_batchnorm import save_resnet
from backbones.tiny_images import backbone_of, colour_task
from backbones.tiny_timm import backbone_of as timm_of
from backbones.tiny_timm import save_timm
from oracles import batchnorm as oracle

from twin_merging.backbones.batchnorm import norms
from twin_merging.config import FullFineTuning
from twin_merging.experts.fine_tuning import full_fine_tuning, train
from twin_merging.experts.multitask import train_jointly
from twin_merging.experts.norms import without_lonely

OPTIONS = FullFineTuning(epochs=2, lr=1e-3, batch_size=8)


def check(backbone, encoder, tasks, rows: int) -> None:
    inputs = [backbone.inputs(task, "train") for task in tasks]
    (names,) = {tuple(backbone.batch(each, range(rows))) for each in inputs}
    batch = {name: torch.cat([backbone.batch(each, range(rows))[name] for each in inputs]) for name in names}
    expected, state = oracle.statistics(encoder, [batch]), encoder.state_dict()
    assert expected
    for name, values in expected.items():
        np.testing.assert_allclose(state[name].numpy(), values, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.fixture(params=["transformers", "timm"])
def backbone(request, tmp_path):
    if request.param == "transformers":
        found = backbone_of(save_resnet(tmp_path / "model"))
        found.options.batchnorm_rows = 20
        return found
    save_timm(tmp_path / "model", "resnet")
    return timm_of(tmp_path / "model", batchnorm_rows=20)


def test_an_expert_is_saved_with_statistics_of_its_first_training_rows(backbone, tmp_path):
    task = colour_task("a")
    full_fine_tuning(backbone, task, OPTIONS, 0, tmp_path / "expert", tmp_path / "scratch")
    model = backbone.load(tmp_path / "expert", 3)
    assert norms(backbone.encoder(model))
    check(backbone, backbone.encoder(model), [task], 20)


def test_joint_training_finds_them_by_all_tasks_alike(backbone, tmp_path):
    tasks = [colour_task("a"), colour_task("b", rows=12, seed=1)]
    weights, _, _ = train_jointly(backbone, tasks, OPTIONS, 0, tmp_path)
    check(backbone, backbone.encoder_with(weights), tasks, 12)


@pytest.mark.parametrize("rows", [16, 17, 18])
def test_no_batch_has_one_row_alone(tmp_path, caplog, rows):
    """Whose last map of 1 x 1 would be one number a channel."""
    caplog.set_level("INFO")
    save_timm(tmp_path / "model", "resnet")
    backbone, task, seen = timm_of(tmp_path / "model", batchnorm_rows=8), colour_task("a", rows=rows), []
    model = backbone.new_expert(task)
    model.register_forward_hook(lambda module, _, output: seen.append((len(output.logits), module.training)))
    train(backbone, model, task, OPTIONS, 0, tmp_path)
    learned, judged = ([count for count, training in seen if training is mode] for mode in (True, False))
    assert sorted(learned) == sorted({16: [8, 8], 17: [8, 8], 18: [8, 8, 2]}[rows] * OPTIONS.epochs)
    assert sum(judged) == rows * OPTIONS.epochs
    assert ("leaves out the last of 17 rows" in caplog.text) == (rows == 17)


@pytest.mark.parametrize(("kind", "left"), [("resnet", 16), ("vit", 17)])
def test_only_batchnorm_leaves_a_row_out(tmp_path, kind, left):
    save_timm(tmp_path / "model", kind)
    model = timm_of(tmp_path / "model").new_expert(colour_task("a"))
    found = without_lonely(list(range(17)), 8, model, "a")
    assert list(found) == list(range(left))
    assert list(without_lonely([0], 8, model, "a")) == [0]
