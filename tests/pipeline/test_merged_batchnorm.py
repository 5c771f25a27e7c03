"""Jobs whose backbone has BatchNorm: what a merged encoder's statistics are found by, and who uses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones.tiny_batchnorm import save_resnet
from backbones.tiny_images import save_colours, save_encoder
from oracles import batchnorm as oracle
from safetensors.torch import load_file

from twin_merging.compose import plan
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.errors import UserError
from twin_merging.evaluation.heads import oracle_answers
from twin_merging.evaluation.metrics import metrics
from twin_merging.parameters import is_statistic
from twin_merging.pipeline import artefacts, batchnorm_stages
from twin_merging.pipeline.cache import Cache
from twin_merging.pipeline.compute import dynamic_features
from twin_merging.pipeline.stage import upstream
from twin_merging.pipeline.stages import ENCODER, Stages
from twin_merging.tasks.base import Task

ROWS = 20
GRID = [0.2, 0.6, 1.0]
KEEP = {"twin": ("sparsifier=magnitude", "sparsifier.fraction=0.3", "router=oracle")}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two tasks of images and a tiny ResNet."""
    place = save_colours(tmp_path_factory.mktemp("place"))
    save_resnet(place / "resnet")
    return place


def job(place: Path, encoder: str, *arguments: str) -> Stages:
    given = [
        "backbone=dinov2_small", f"backbone.pretrained={place / encoder}", "backbone.image_size=null", "tasks=vision",
        "tasks.names=[a,b]", "tasks.corrupt=0.05", f"paths.data={place}", "finetune.epochs=2", "finetune.lr=1e-2",
        "finetune.batch_size=16", "precision=fp32", "device=cpu", f"paths.cache={place / 'cache'}",
        f"backbone.batchnorm_rows={ROWS}", *arguments,
    ]  # fmt: skip
    (run,) = plan(given, multirun=False).jobs
    return Stages(run, Cache(Path(run.paths.cache)))


def result_of(stages: Stages) -> dict[str, Any]:
    return stages.get(stages.result).json("result.json")


def batch_of(stages: Stages, tasks: list[Task], rows: int = ROWS) -> dict[str, torch.Tensor]:
    """The first training rows of some tasks, side by side: with so few there is one batch."""
    backbone = artefacts.backbone_of(stages)
    parts = [backbone.batch(backbone.inputs(task, "train"), range(rows))["pixel_values"] for task in tasks]
    return {"pixel_values": torch.cat(parts)}


def check_statistics(stages: Stages, weights: dict[str, Any], batch: dict[str, torch.Tensor]) -> None:
    """They are those that a pass by definition finds in an encoder of these weights."""
    encoder = artefacts.encoder_with(stages, weights)
    for name, values in oracle.statistics(encoder, [batch]).items():
        np.testing.assert_allclose(weights[name].numpy(), values, rtol=1e-3, atol=1e-5, err_msg=name)


def test_a_merged_encoder_has_the_statistics_of_its_own(place):
    stages = job(place, "resnet", "merge_method=task_arithmetic")
    artefact = stages.get(stages.shared)
    merged, tasks = load_file(artefact.path(ENCODER)), artefacts.tasks_of(stages)
    start, experts = artefacts.base_weights(stages), artefacts.expert_weights(stages)
    assert merged.keys() == set(start)
    for name in start:
        linear = start[name] + 0.3 * sum(expert[name] - start[name] for expert in experts)
        if not is_statistic(name):
            torch.testing.assert_close(merged[name], linear, rtol=0, atol=1e-6)
        elif name.endswith("running_var"):
            assert not torch.allclose(merged[name], linear, rtol=0.05)
    check_statistics(stages, merged, batch_of(stages, tasks))
    (choice,) = artefact.json("choices.json")
    assert (choice["what"], choice["split"]) == ("BatchNorm statistics", "unlabelled train inputs")
    assert choice["rows"] == 2 * ROWS
    assert choice["fingerprints"] == {task.name: task.fingerprint("train") for task in tasks}


def test_each_value_of_a_grid_is_judged_with_statistics_of_its_own(place):
    stages = job(place, "resnet", "merge_method=task_arithmetic", f"merge_method.grid={GRID}")
    choice, statistics = stages.get(stages.shared).json("choices.json")
    assert (choice["what"], statistics["what"]) == ("scaling", "BatchNorm statistics")
    tasks, backbone, heads = artefacts.tasks_of(stages), artefacts.backbone_of(stages), artefacts.heads_of(stages)
    start, experts = artefacts.base_weights(stages), artefacts.expert_weights(stages)
    best = [max(stages.get(stage).json("expert.json")["choice"]["scores"].values()) for stage in stages.experts]
    for value in GRID:
        weights = {
            name: start[name] if is_statistic(name) else start[name] + value * sum(each[name] - start[name] for each in experts)
            for name in start
        }  # fmt: skip
        encoder = artefacts.encoder_with(stages, weights)
        found = oracle.statistics(encoder, [batch_of(stages, tasks)])
        encoder.load_state_dict({**weights, **{name: torch.tensor(each) for name, each in found.items()}})
        scores = []
        for task, reference in zip(tasks, best, strict=True):
            features = backbone.encode(encoder, backbone.inputs(task, "validation"), 8, "test")
            answers = oracle_answers(task, features, heads)
            scores.append(100 * metrics[task.metric](answers, task.splits["validation"].labels) / reference)
        assert choice["scores"][str(value)] == pytest.approx(np.mean(scores), abs=1e-6)


def test_what_each_task_keeps_of_its_own_has_statistics_that_fit_it(place):
    own = ["parameters.exclude=['.*normalization.*']", "evaluation.excluded=task"]
    stages = job(place, "resnet", "merge_method=weight_averaging", *own)
    merged = load_file(stages.get(stages.shared).path(ENCODER))
    tasks, backbone = artefacts.tasks_of(stages), artefacts.backbone_of(stages)
    found = artefacts.features_of(stages, stages.encoded_by_shared("test", own=True), tasks)
    for index, (task, expert) in enumerate(zip(tasks, artefacts.expert_weights(stages), strict=True)):
        weights = artefacts.with_own(stages, merged, index)
        assert torch.equal(
            weights["embedder.embedder.normalization.bias"], expert["embedder.embedder.normalization.bias"]
        )
        encoder = artefacts.encoder_with(stages, weights)
        own_statistics = oracle.statistics(encoder, [batch_of(stages, tasks)])
        encoder.load_state_dict({**weights, **{name: torch.tensor(each) for name, each in own_statistics.items()}})
        expected = backbone.encode(encoder, backbone.inputs(task, "test"), 8, "test")
        torch.testing.assert_close(found[task.name]["pooled"], expected["pooled"], rtol=1e-3, atol=1e-4)


def test_nothing_of_a_test_split_is_seen(place, monkeypatch):
    stages = job(place, "resnet", "merge_method=weight_averaging", f"paths.cache={place / 'other'}")
    tasks = artefacts.tasks_of(stages)
    leaking = [Task(**{**vars(task), "splits": {**task.splits, "train": task.splits["test"]}}) for task in tasks]
    monkeypatch.setattr("twin_merging.pipeline.batchnorm.tasks_of", lambda stages: leaking)
    with pytest.raises(UserError, match="nothing may be selected on test rows") as caught:
        stages.get(stages.shared)
    assert caught.value.key == "BatchNorm statistics"


def test_fewer_rows_than_are_asked_for_are_as_many_of_each_task(place):
    stages = job(place, "resnet", "merge_method=weight_averaging", "backbone.batchnorm_rows=1000")
    (choice,) = stages.get(stages.shared).json("choices.json")
    counts = [len(task.splits["train"]) for task in artefacts.tasks_of(stages)]
    assert counts == [48, 47]
    assert choice["rows"] == 2 * 47


@pytest.mark.parametrize("method", ["twin", "emr"])
def test_each_expert_adds_what_its_merged_model_finds_on_its_own_rows(place, method):
    stages = job(place, "resnet", f"merge_method={method}", *KEEP.get(method, ()))
    shared, tasks = load_file(stages.get(stages.shared).path(ENCODER)), artefacts.tasks_of(stages)
    knowledge = artefacts.exclusive_of(stages)
    assert {name for name in knowledge if is_statistic(name)} == {
        name for name, tensor in shared.items() if is_statistic(name) and tensor.is_floating_point()
    }
    model = TwinMergedModel(artefacts.encoder_with(stages, shared), knowledge)
    each = [model.merge_for(torch.eye(2)[index]) for index in range(2)]
    for task, merged in zip(tasks, each, strict=True):
        check_statistics(stages, merged, batch_of(stages, [task]))
    mixed = model.merge_for(torch.tensor([0.3, 0.7]))
    for name in shared:
        if name.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(mixed[name], 0.3 * each[0][name] + 0.7 * each[1][name], rtol=1e-4, atol=1e-5)
    (choice,) = [
        choice for choice in result_of(stages)["choices"] if choice["what"].startswith("BatchNorm statistics of")
    ]
    assert (choice["split"], choice["rows"]) == ("unlabelled train inputs", 2 * ROWS)


def test_rows_of_a_twin_are_answered_as_by_a_plain_model_of_each(place):
    stages = job(place, "resnet", "merge_method=twin", *KEEP["twin"])
    tasks, backbone = artefacts.tasks_of(stages), artefacts.backbone_of(stages)
    weights = {task.name: torch.rand(6, 2, generator=torch.Generator().manual_seed(0)).softmax(-1) for task in tasks}
    found, _ = dynamic_features(stages, tasks, weights, "test", [6, 6])
    merged = TwinMergedModel(
        artefacts.encoder_with(stages, load_file(stages.get(stages.shared).path(ENCODER))),
        artefacts.exclusive_of(stages),
    )
    for task in tasks:
        for row in range(6):
            plain = artefacts.encoder_with(stages, merged.merge_for(weights[task.name][row]))
            alone = backbone.encode(plain, backbone.inputs(task, "test", [row]), 1, "test")
            torch.testing.assert_close(found[task.name]["pooled"][row], alone["pooled"][0], rtol=1e-5, atol=1e-5)


def test_what_a_twins_statistics_take_up_is_counted(place):
    stages = job(place, "resnet", "merge_method=twin", *KEEP["twin"])
    costs = result_of(stages)["costs"]["stored"]["exclusive"]
    statistics = load_file(stages.get(batchnorm_stages.exclusive(stages)[0]).path(artefacts.STATISTICS))
    vectors = load_file(stages.get(stages.exclusive).path("exclusive.safetensors"))
    assert not any(map(is_statistic, vectors))
    numbers = [each for each in (*statistics.values(), *vectors.values()) if each.is_floating_point()]
    assert costs["parameters"] == sum(map(torch.numel, numbers))


def test_a_twin_whose_tasks_keep_values_of_their_own_has_statistics_that_fit_them(place):
    own = ["parameters.exclude=['.*normalization.*']", "evaluation.excluded=task"]
    stages = job(place, "resnet", "merge_method=twin", *KEEP["twin"], *own)
    shared, tasks = load_file(stages.get(stages.shared).path(ENCODER)), artefacts.tasks_of(stages)
    knowledge = artefacts.exclusive_of(stages)
    for index, task in enumerate(tasks):
        model = TwinMergedModel(artefacts.encoder_with(stages, artefacts.with_own(stages, shared, index)), knowledge)
        check_statistics(stages, model.merge_for(torch.eye(2)[index]), batch_of(stages, [task]))


def keys(stages: Stages) -> set[str]:
    return {stage.key for stage in upstream(stages.result)}


@pytest.mark.parametrize("method", ["weight_averaging", "twin", "emr", "adamerging"])
def test_jobs_without_it_are_addressed_as_ever(place, method):
    save_encoder(place / "vit", "vit")
    few, many = (job(place, "vit", f"merge_method={method}", f"backbone.batchnorm_rows={rows}") for rows in (20, 30))
    assert keys(few) == keys(many)
    assert "batchnorm" not in json.dumps([stage.options for stage in upstream(few.result)])
    assert batchnorm_stages.data(few) == ()
    assert "batchnorm" not in {stage.name for stage in upstream(few.result)}
    few, many = (job(place, "resnet", f"merge_method={method}", f"backbone.batchnorm_rows={rows}") for rows in (20, 30))
    assert keys(few) != keys(many)
    assert not {stage.key for stage in few.experts} & {stage.key for stage in many.experts}
