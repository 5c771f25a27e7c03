"""Decoded images in the cache: made once where there is room, read where they are, and of no weight in what is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from backbones.tiny_images import save_colours, save_encoder

from twin_merging.backbones.pixels import KeptPixels
from twin_merging.compose import plan
from twin_merging.errors import UserError
from twin_merging.pipeline import pixels
from twin_merging.pipeline.artefacts import backbone_of, inputs_of, task_of
from twin_merging.pipeline.cache import Cache
from twin_merging.pipeline.stages import Stages


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    encoder = save_encoder(folder / "encoder", "dinov2")
    return [
        "backbone=dinov2_small", f"backbone.pretrained={encoder}", "backbone.image_size=16", "tasks=vision", "tasks.names=[a,b]",
        f"paths.data={save_colours(folder)}", "tasks.corrupt=0.05", "merge_method=task_arithmetic", "device=cpu", "precision=fp32",
    ]  # fmt: skip


def stages_of(arguments: list[str], root: Path, *changed: str, mode: str = "write") -> Stages:
    (run,) = plan([*arguments, *changed], multirun=False).jobs
    return Stages(run, Cache(root, mode))


def test_images_are_decoded_once_for_all_jobs(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    task = task_of(stages_of(arguments, tmp_path), "b")
    assert isinstance(task.pixels, KeptPixels)
    (file,) = (tmp_path / "pixels").glob("*/pixels.bin")
    assert file.stat().st_size == 95 * 3 * 16 * 16  # one of 96 is no image
    monkeypatch.setattr("twin_merging.tasks.images.decode", None)
    again = stages_of(arguments, tmp_path, "merge_method=ties")
    inputs = inputs_of(again, task_of(again, "b"), "test")
    batch = backbone_of(again).batch(inputs, range(24))["pixel_values"]
    monkeypatch.undo()
    plain = stages_of(arguments, tmp_path, "backbone.pixels=null")
    anew = task_of(plain, "b")
    assert anew.pixels is None
    assert backbone_of(plain).batch(inputs_of(plain, anew, "test"), range(24))["pixel_values"].equal(batch)


@pytest.mark.parametrize("room", ["null", "1KB", "72KB"])
def test_without_room_they_are_not_kept(arguments: list[str], tmp_path: Path, room: str):
    assert task_of(stages_of(arguments, tmp_path, f"backbone.pixels={room}"), "a").pixels is None
    assert not (tmp_path / "pixels").exists()
    assert task_of(stages_of(arguments, tmp_path, "backbone.pixels=74KB"), "a").pixels is not None  # 96 of 768 bytes


def test_half_of_the_free_disk_is_left(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = pixels.shutil.disk_usage(tmp_path)
    for free, is_kept in ((96 * 768 * 2 - 1, False), (96 * 768 * 2, True), (0, True)):  # what is there is read
        monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        assert (task_of(stages_of(arguments, tmp_path), "a").pixels is not None) == is_kept


@pytest.mark.parametrize("mode", ["read", "off"])
def test_nothing_is_added_to_a_cache_that_is_only_read(arguments: list[str], tmp_path: Path, mode: str):
    assert task_of(stages_of(arguments, tmp_path, mode=mode), "a").pixels is None
    assert not tmp_path.joinpath("pixels").exists()
    task_of(stages_of(arguments, tmp_path), "a")
    assert (task_of(stages_of(arguments, tmp_path, mode=mode), "a").pixels is not None) == (mode == "read")


def test_results_are_the_same_artefacts_whether_they_are_kept_or_not(arguments: list[str], tmp_path: Path):
    one, two = (stages_of(arguments, tmp_path, f"backbone.pixels={room}") for room in ("16GB", "null"))
    assert one.result.key == two.result.key
    assert [stage.key for stage in one.experts] == [stage.key for stage in two.experts]
    assert "pixels" not in {stage.name for stage in one.result.inputs}


def test_what_a_model_sees_makes_them_new(arguments: list[str], tmp_path: Path):
    def key(*changed: str) -> str:
        stages = stages_of(arguments, tmp_path, *changed)
        return pixels.stage(stages, task_of(stages, "a"), backbone_of(stages)).key

    assert key() == key("finetune.epochs=9") == key("backbone.pixels=1GB")
    assert len({key(), key("backbone.image_size=24"), key("tasks.rows.train=9")}) == 3


def test_a_size_that_is_none_is_refused(arguments: list[str]):
    with pytest.raises(UserError, match="not a size") as raised:
        plan([*arguments, "backbone.pixels=much"], multirun=False)
    assert raised.value.key == "backbone.pixels"
