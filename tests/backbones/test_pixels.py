"""Images kept decoded in one file, and images decoded when they are asked for, are the same to the bit, and so is what is learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_clip import backbone_of as clip_of
from tiny_clip import save_clip
from tiny_images import backbone_of, colour_task, save_encoder

from twin_merging.backbones import pixels
from twin_merging.backbones.pixels import KeptPixels, image_bytes, save_pixels
from twin_merging.backbones.rows import WithMore, taken
from twin_merging.config import FullFineTuning
from twin_merging.errors import UserError
from twin_merging.experts.fine_tuning import full_fine_tuning, labelled
from twin_merging.experts.multitask import train_jointly
from twin_merging.tasks import images as image_module
from twin_merging.tasks.base import Task


@pytest.fixture(scope="module", params=["dinov2", "clip"])
def backbone(request, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp(request.param)
    return clip_of(save_clip(folder)) if request.param == "clip" else backbone_of(save_encoder(folder, "dinov2"))


@pytest.fixture
def task() -> Task:
    return colour_task("colours")


def kept(backbone, task: Task, folder: Path) -> Task:
    """The task with its images in a file."""
    save_pixels(backbone.decoded(task.images, list(task.images)), folder / "pixels.bin")
    return replace(task, pixels=KeptPixels(folder / "pixels.bin", task.images, backbone.side))


def test_kept_images_are_those_that_are_decoded_anew(backbone, task: Task, tmp_path: Path):
    other = kept(backbone, task, tmp_path)
    assert (tmp_path / "pixels.bin").stat().st_size == len(task.images) * image_bytes(32)
    assert len(other.pixels) == len(task.images)
    for split in task.splits:
        anew, stored = backbone.inputs(task, split), backbone.inputs(other, split)
        assert anew.lengths == stored.lengths
        for rows in ([0], [5, 1, 5], range(24)):
            one, two = backbone.batch(anew, rows), backbone.batch(stored, rows)
            assert one["pixel_values"].dtype == torch.float32
            assert one["pixel_values"].equal(two["pixel_values"])
    assert not anew.rows[0]["pixel_values"].equal(anew.rows[1]["pixel_values"])


def test_how_many_are_decoded_together_changes_no_bit(backbone, task: Task, monkeypatch: pytest.MonkeyPatch):
    module = __import__("twin_merging.backbones.image_classifier", fromlist=["AT_ONCE"])
    found = []
    for count in (1, 8, 64):
        monkeypatch.setattr(module, "AT_ONCE", count)
        found.append(torch.stack(list(backbone.decoded(task.images, list(task.images)))))
    assert found[0].equal(found[1])
    assert found[0].equal(found[2])


def test_features_are_the_same_and_batches_are_made_one_ahead(
    backbone, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    encoder = backbone.encoder(backbone.new_expert(task))
    stored = backbone.encode(encoder, backbone.inputs(kept(backbone, task, tmp_path), "test"), 5, "test")
    decoded: list[int] = []
    real = image_module.decode
    monkeypatch.setattr(image_module, "decode", lambda data: (decoded.append(1), real(data))[1])
    inputs = backbone.inputs(task, "test")
    assert decoded == []  # none is decoded before it is asked for
    batches = backbone.batches(inputs, [range(4), range(4, 8), range(8, 12), range(12, 16)])
    next(batches)
    batches.close()
    assert len(decoded) <= 8
    anew = backbone.encode(encoder, inputs, 5, "test")
    for key, value in anew.items():
        assert value.equal(stored[key])


@pytest.mark.parametrize("jointly", [False, True])
def test_training_from_kept_images_gives_the_same_weights(backbone, task: Task, tmp_path: Path, jointly: bool):
    options, found = FullFineTuning(epochs=2, lr=1e-3, batch_size=8), []
    for number, each in enumerate((task, kept(backbone, task, tmp_path))):
        scratch = tmp_path / f"scratch{number}"
        if jointly:
            second = replace(each, name="second")
            weights, heads, _ = train_jointly(backbone, [each, second], options, 0, scratch)
            found.append(
                {**weights, **{f"{name}.{key}": value for name in heads for key, value in heads[name].items()}}
            )
        else:
            full_fine_tuning(backbone, each, options, 0, tmp_path / f"expert{number}", scratch)
            found.append(backbone.load(tmp_path / f"expert{number}", 3).state_dict())
    assert found[0].keys() == found[1].keys()
    assert all(value.equal(found[1][name]) for name, value in found[0].items())


def test_a_file_of_another_size_is_refused(backbone, task: Task, tmp_path: Path):
    kept(backbone, task, tmp_path)
    with (tmp_path / "pixels.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="damaged or incomplete"):
        KeptPixels(tmp_path / "pixels.bin", task.images, 32)


def test_images_are_read_and_not_mapped(tmp_path: Path):
    """What is mapped would count as the process's memory."""
    keys = [str(number) for number in range(64)]
    save_pixels((torch.full((3, 256, 256), number, dtype=torch.uint8) for number in range(64)), tmp_path / "file")
    found = KeptPixels(tmp_path / "file", keys, 256)
    for key, image in found.items():
        assert image.eq(int(key)).all()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert pixels.image_bytes(256) == 3 * 256 * 256


def test_rows_are_made_together_where_they_can_be(task: Task):
    asked: list[list[int]] = []

    class Several(list):
        def __getitems__(self, numbers):
            asked.append(list(numbers))
            return [self[number] for number in numbers]

    rows = WithMore(Several([{"a": number} for number in range(5)]), [{"labels": 10 * number} for number in range(5)])
    assert taken(rows, [4, 0]) == [{"a": 4, "labels": 40}, {"a": 0, "labels": 0}]
    assert rows[2] == {"a": 2, "labels": 20}
    assert asked == [[4, 0], [2]]
    assert [*WithMore([{"a": 1}], [{"labels": 2}])] == [{"a": 1, "labels": 2}]
    assert len(labelled(type("Rows", (), {"rows": [{}] * 24, "lengths": []})(), task, "train")) == 24
