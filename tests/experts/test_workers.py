"""Experts of augmented images, made by worker processes: the same ones however many there are, and after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from backbones.tiny_images import backbone_of, colour_task, save_encoder

from twin_merging.backbones.image_classifier import ImageClassifierBackbone
from twin_merging.compose import plan
from twin_merging.config import FullFineTuning
from twin_merging.errors import UserError
from twin_merging.evaluation.metrics import metrics
from twin_merging.experts import fine_tuning, multitask, workers
from twin_merging.experts.fine_tuning import train
from twin_merging.experts.multitask import train_jointly
from twin_merging.experts.workers import workers_for
from twin_merging.pipeline import data_stages
from twin_merging.pipeline.cache import Cache
from twin_merging.pipeline.stages import Stages
from twin_merging.tasks.base import Task

OPTIONS = FullFineTuning(epochs=3, lr=1e-3, batch_size=8, backbone_dropout=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("dinov2"), "dinov2")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> ImageClassifierBackbone:
    return backbone_of(folder, augment="crop_flip")


@pytest.fixture(scope="module")
def task() -> Task:
    return colour_task("colours")


def learned(backbone, task: Task, scratch: Path, count: int, jointly: bool = False) -> dict[str, torch.Tensor]:
    """The weights after training with so many workers."""
    options = replace(OPTIONS, workers=count)
    if jointly:
        weights, heads, _ = train_jointly(backbone, [task, colour_task("second", 16, seed=1)], options, 0, scratch)
        return weights | {f"{name}.{key}": value for name, head in heads.items() for key, value in head.items()}
    torch.manual_seed(0)
    model = backbone.new_expert(task, options.backbone_dropout)
    train(backbone, model, task, options, 0, scratch)
    return model.state_dict()


def assert_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert [name for name, value in one.items() if not value.equal(two[name])] == []


@pytest.mark.parametrize("jointly", [False, True])
def test_an_expert_is_the_same_however_many_workers_there_are(backbone, folder, task, tmp_path: Path, jointly: bool):
    alone = learned(backbone, task, tmp_path / "0", 0, jointly)
    for count in (1, 2):
        assert_equal(learned(backbone, task, tmp_path / str(count), count, jointly), alone)
    plain = learned(backbone_of(folder), task, tmp_path / "plain", 0, jointly)
    assert not all(value.equal(alone[name]) for name, value in plain.items())


@pytest.mark.parametrize("jointly", [False, True])
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(
    backbone, task, tmp_path: Path, monkeypatch, jointly: bool
):
    whole = learned(backbone, task, tmp_path / "whole", 0, jointly)

    class Killed(Exception):
        pass

    calls = []

    def accuracy(answers, labels):
        calls.append(None)
        if len(calls) > (2 if jointly else 1):  # in the second epoch
            raise Killed
        return metrics["accuracy"](answers, labels)

    with monkeypatch.context() as patched:
        patched.setattr(multitask if jointly else fine_tuning, "metrics", {"accuracy": accuracy})
        with pytest.raises(Killed):
            learned(backbone, task, tmp_path / "killed", 1, jointly)
    assert list((tmp_path / "killed").glob("checkpoint-*/complete"))
    assert_equal(learned(backbone, task, tmp_path / "killed", 2, jointly), whole)


def test_every_epoch_sees_other_crops_and_no_validation_row_is_cropped(
    backbone, folder, task, tmp_path: Path, monkeypatch
):
    seen: list[torch.Tensor] = []
    real = backbone.collate
    monkeypatch.setattr(backbone, "collate", lambda rows: (seen.append(made := real(rows)), made)[1])
    learned(backbone, task, tmp_path, 0)
    assert [len(batch["labels"]) for batch in seen] == 3 * [8, 8, 8, 24]
    training = [torch.cat([batch["pixel_values"] for batch in seen[start : start + 3]]) for start in (0, 4, 8)]
    assert len({image.numpy().tobytes() for epoch in training for image in epoch}) > 60  # of 72
    plain = backbone_of(folder)
    expected = plain.batch(plain.inputs(task, "validation"), range(24))["pixel_values"]
    assert all(batch["pixel_values"].equal(expected) for batch in seen[3::4])


@pytest.mark.parametrize("count", [0, 1])
def test_an_image_that_went_bad_is_named(backbone, task, tmp_path: Path, count: int):
    key = task.splits["train"].texts[5][0]
    bad = replace(task, images={**task.images, key: b"no image"})
    with pytest.raises(UserError) as raised:
        learned(backbone, bad, tmp_path, count)
    assert str(raised.value).startswith(f"image {key}: cannot be decoded (cannot identify image file")
    assert str(raised.value).endswith("as it could be before")


def test_as_many_workers_as_there_is_room_for(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(workers, "START", "fork")
    monkeypatch.setattr(workers, "processors", lambda: 32)
    monkeypatch.setattr(workers, "SHARED", tmp_path / "none")
    assert workers_for(None, 0, 128) == 0  # nothing is decoded
    assert workers_for(5, 0, 128) == 5
    assert workers_for(None, 600_000, 128) == 8
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(workers, "START", None)
        assert (workers_for(None, 600_000, 128), workers_for(5, 600_000, 128)) == (0, 5)
    monkeypatch.setattr(workers, "SHARED", tmp_path)
    usage = workers.shutil.disk_usage(tmp_path)
    for free, count in ((64 << 20, 0), (2 << 30, 4), (64 << 30, 8)):  # a batch of 128 has 77 MB
        monkeypatch.setattr(workers.shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        assert workers_for(None, 600_000, 128) == count
    monkeypatch.setattr(workers, "processors", lambda: 1)
    assert workers_for(None, 600_000, 128) == 0
    process = type("Process", (), {"daemon": True})()
    monkeypatch.setattr(workers.multiprocessing, "current_process", lambda: process)
    assert workers_for(5, 600_000, 128) == 0


def test_images_that_are_kept_need_none_unless_they_are_augmented(backbone, folder, task):
    kept = replace(task, pixels={})
    assert backbone.made_bytes(task) == backbone.made_bytes(kept) == 3 * 32 * 32 * 4
    assert (backbone_of(folder).made_bytes(task), backbone_of(folder).made_bytes(kept)) == (3 * 32 * 32 * 4, 0)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda sent: sent.name)
def test_workers_end_with_the_process_that_trains(folder: Path, tmp_path: Path, sent: signal.Signals):
    script = f"""
import multiprocessing, signal, sys, threading, time
from pathlib import Path
from backbones.tiny_images import backbone_of, colour_task
from twin_merging.config import FullFineTuning
from twin_merging.experts.fine_tuning import full_fine_tuning

def tell():
    while len(found := multiprocessing.active_children()) < 2:
        time.sleep(0.01)
    print(*(child.pid for child in found), flush=True)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
    threading.Thread(target=tell, daemon=True).start()
    backbone = backbone_of(Path({str(folder)!r}), augment="crop")
    options = FullFineTuning(epochs=10**4, batch_size=8, workers=2)
    full_fine_tuning(backbone, colour_task("colours", 480), options, 0, Path({str(tmp_path / "expert")!r}), Path({str(tmp_path)!r}))
"""
    (tmp_path / "train.py").write_text(script)
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "train.py")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        children = [int(word) for word in process.stdout.readline().split()]
        assert len(children) == 2
        process.send_signal(sent)
        assert process.wait(60)
        end = time.monotonic() + 30
        while left := [child for child in children if Path(f"/proc/{child}").exists()]:
            assert time.monotonic() < end, left
            time.sleep(0.1)
    finally:
        process.kill()


# --- what is made new -------------------------------------------------------------------------------------------------


def keys(folder: Path, *changed: str) -> dict[str, list[str]]:
    given = ["tasks=vision", "tasks.names=[a,b]", f"paths.data={folder}", "merge_method=multitask"]
    (run,) = plan(["backbone=dinov2_small", f"backbone.pretrained={folder}", *given, *changed], multirun=False).jobs
    stages = Stages(run, Cache(Path("nowhere")))
    return {
        "before": [stages.base.key, *(stages.data(name).key for name in "ab")],
        "trained": [*(stage.key for stage in stages.experts), data_stages.joint(stages).key],
    }


def test_augmentation_makes_what_is_trained_new_and_nothing_before_it(folder: Path, tmp_path: Path):
    from backbones.tiny_images import save_colours

    place = save_colours(tmp_path)
    save_encoder(place, "dinov2")
    plain = keys(place)
    assert plain == keys(place, "backbone.augment=none") == keys(place, "finetune.workers=2")
    crop, both = keys(place, "backbone.augment=crop"), keys(place, "backbone.augment=crop_flip")
    assert plain["before"] == crop["before"] == both["before"]
    assert len({*plain["trained"], *crop["trained"], *both["trained"]}) == 9
