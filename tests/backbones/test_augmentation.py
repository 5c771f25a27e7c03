"""Crops of training images: their geometry, what they hang on, and that nothing else sees them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from tiny_clip import backbone_of as clip_of
from tiny_clip import save_clip
from tiny_images import backbone_of, colour_task, save_encoder
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, RandomHorizontalFlip

from twin_merging.backbones.augmentation import augmented, drawn_part
from twin_merging.backbones.rows import Joined, WithMore, set_epoch, taken
from twin_merging.compose import plan
from twin_merging.errors import UserError
from twin_merging.experts.fine_tuning import labelled
from twin_merging.tasks.base import Task
from twin_merging.tasks.images import opened

KINDS = ("none", "crop", "crop_flip")
SIZES = [(640, 480), (37, 91), (50, 50), (300, 20), (9, 200), (1, 1), (3, 2)]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def seed_of(draw: str) -> int:
    return int.from_bytes(hashlib.sha256(draw.encode()).digest()[:4], "big")


def expected_part(width: int, height: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width by the definition, in float64, from the same numbers."""
    low, high = math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
        area = width * height * torch.empty(1).uniform_(0.9, 1.0, generator=generator).item()
        ratio = math.exp(torch.empty(1).uniform_(low, high, generator=generator).item())
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 1 <= wide <= width and 1 <= tall <= height:
            top = int(torch.randint(height - tall + 1, (1,), generator=generator))
            return top, int(torch.randint(width - wide + 1, (1,), generator=generator)), tall, wide
    wide, tall = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_part_is_what_its_definition_says_of_the_same_numbers(size: tuple[int, int]):
    image = picture(*size)
    for row in range(50):
        generator = torch.Generator().manual_seed(seed_of(f"row {row}"))
        part = drawn_part(image, "crop_flip", f"row {row}")
        assert part[:4] == expected_part(*size, generator)
        assert part.mirrored == (torch.rand(1, generator=generator).item() < 0.5)
        assert drawn_part(image, "crop", f"row {row}") == part._replace(mirrored=False)


def test_parts_have_the_areas_places_and_mirrors_that_were_asked_for():
    image = picture(400, 400)
    parts = [drawn_part(image, "crop_flip", str(number)) for number in range(4000)]
    areas = np.array([part.height * part.width for part in parts]) / 400**2
    assert 0.898 < areas.min() < 0.905
    assert 0.98 < areas.max() <= 1
    assert abs(sum(part.mirrored for part in parts) / 4000 - 0.5) < 0.03  # 4 deviations
    free = [part for part in parts if part.height <= 390]
    places = np.array([part.top / (400 - part.height) for part in free])
    assert abs(places.mean() - 0.5) < 4 * 0.3 / math.sqrt(len(free))
    whole = sum(part.height == part.width == 400 for part in parts)
    assert 0.08 < whole / 4000 < 0.18  # none of ten draws fitted the square
    assert len(set(parts)) > 0.98 * (4000 - whole)


@pytest.mark.parametrize("size", [(64, 48), (20, 24)], ids=str)
def test_pixels_are_those_of_the_transforms_that_open_clip_trains_with(size: tuple[int, int]):
    crop = open_clip.image_transform(32, is_train=True, mean=(0.0,) * 3, std=(1.0,) * 3)
    both = Compose([*crop.transforms[:1], RandomHorizontalFlip(), *crop.transforms[1:]])
    for row in range(8):
        image = picture(*size, seed=row)
        for kind, transform in (("crop", crop), ("crop_flip", both)):
            found = augmented(image, kind, 32, f"{kind} {row}")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(f"{kind} {row}"))
                assert found.float().div(255).equal(transform(image))
            assert found.dtype == torch.uint8


def test_no_other_draw_of_the_process_changes():
    before = torch.get_rng_state()
    drawn_part(picture(30, 30), "crop_flip", "a")
    assert torch.get_rng_state().equal(before)


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["dinov2", "clip"])
def backbones(request, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """By what they do to training images."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "clip":
        save_clip(folder)
        return {kind: clip_of(folder, augment=kind) for kind in KINDS}
    save_encoder(folder, "dinov2")
    return {kind: backbone_of(folder, augment=kind) for kind in KINDS}


@pytest.fixture(scope="module")
def task() -> Task:
    return colour_task("colours")


def seen(backbone, task: Task, rows=range(24), seed: int = 0, epoch: int = 0) -> torch.Tensor:
    found = backbone.training_inputs(task, seed).rows
    set_epoch(found, epoch)
    return torch.stack([row["pixel_values"] for row in taken(found, rows)])


def test_without_it_training_sees_what_evaluation_sees(backbones, task: Task):
    plain = torch.stack([row["pixel_values"] for row in taken(backbones["none"].inputs(task, "train").rows, range(24))])
    assert seen(backbones["none"], task, seed=3, epoch=2).equal(plain)


def test_a_crop_hangs_on_seed_task_epoch_and_row_alone(backbones, task: Task):
    backbone = backbones["crop"]
    first = seen(backbone, task)
    assert first.shape == (24, 3, 32, 32)
    assert first.equal(seen(backbone, task))
    assert seen(backbone, task, [5, 0, 5]).equal(first[[5, 0, 5]])
    other = replace(task, name="other")
    for changed in (seen(backbone, task, epoch=1), seen(backbone, task, seed=1), seen(backbone, other)):
        assert sum(not one.equal(two) for one, two in zip(first, changed, strict=True)) >= 15
    key = task.splits["train"].texts[7][0]
    same = replace(task, splits={**task.splits, "train": task.splits["train"].take([7] * 24)})
    assert {text for (text,) in same.splits["train"].texts} == {key}
    assert len({image.numpy().tobytes() for image in seen(backbone, same)}) >= 8  # each row has its own draw


def test_a_crop_is_of_the_image_and_not_of_what_evaluation_sees_of_it(backbones, task: Task):
    backbone, kept = backbones["crop"], replace(task, pixels={})
    assert seen(backbone, kept).equal(seen(backbone, task))
    key = task.splits["train"].texts[3][0]
    draw = "seed 0, task colours, epoch 4, row 3"
    assert seen(backbone, task, [3], epoch=4)[0].equal(augmented(opened(task.images, key), "crop", 32, draw))


def test_some_are_mirrored_where_that_is_asked_for(backbones, task: Task):
    plain, flipped = (seen(backbones[kind], task) for kind in ("crop", "crop_flip"))
    same = [one.equal(two) for one, two in zip(plain, flipped, strict=True)]
    mirrored = [one.float().sub(two.flip(2).float()).abs().mean() < 2 for one, two in zip(plain, flipped, strict=True)]
    assert all(one != two for one, two in zip(same, mirrored, strict=True))
    assert 4 < sum(mirrored) < 20


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_evaluation_sees_whole_images(backbones, task: Task, split: str):
    plain = backbones["none"].inputs(task, split)
    for kind in KINDS[1:]:
        inputs = backbones[kind].inputs(task, split)
        set_epoch(inputs.rows, 1)
        found = backbones[kind].batch(inputs, range(24))["pixel_values"]
        assert found.equal(backbones["none"].batch(plain, range(24))["pixel_values"])


def batches(backbone, task: Task, **options) -> list[torch.Tensor]:
    rows = Joined([labelled(backbone.training_inputs(task, 0), task, "train")] * 2)
    rows.set_epoch(1)
    return [batch["pixel_values"] for batch in DataLoader(rows, 7, collate_fn=backbone.collate, **options)]


@pytest.mark.parametrize("kind", ["none", "crop_flip"])
def test_worker_processes_make_the_same_batches(backbones, task: Task, kind: str):
    alone = batches(backbones[kind], task)
    assert torch.cat(alone).shape == (48, 3, 32, 32)
    for workers in (1, 2):
        found = batches(backbones[kind], task, num_workers=workers)
        assert all(one.equal(two) for one, two in zip(alone, found, strict=True))


def test_workers_that_share_nothing_make_them_too(backbones, task: Task):
    """As on macOS, where a worker gets what can be pickled: that is no model."""
    backbone = backbones["crop"]
    backbone.check_head_reads_first_token(backbone.new_expert(task))
    alone = batches(backbone, task)
    found = batches(backbone, task, num_workers=1, multiprocessing_context="spawn")
    assert all(one.equal(two) for one, two in zip(alone, found, strict=True))


def test_rows_of_several_tasks_are_made_together_by_task():
    asked: list[tuple[str, list[int]]] = []

    class Several(list):
        def __getitems__(self, numbers):
            asked.append((self[0]["a"], list(numbers)))
            return [self[number] for number in numbers]

    parts = [
        Several({"a": f"{name}{number}"} for number in range(count)) for name, count in (("x", 3), ("y", 1), ("z", 2))
    ]
    rows = Joined([WithMore(part, [{"labels": 1}] * len(part)) for part in parts])
    assert len(rows) == 6
    found = rows.__getitems__([5, 0, 4, 2, 0])
    assert [row["a"] for row in found] == ["z1", "x0", "z0", "x2", "x0"]
    assert asked == [("z0", [1, 0]), ("x0", [0, 2, 0])]
    assert rows[3] == {"a": "y0", "labels": 1}
    with pytest.raises(IndexError):
        rows[6]


@pytest.mark.parametrize("backbone", ["dinov2_small", "clip_vit_b32"])
def test_a_name_that_is_none_is_refused(backbone: str):
    with pytest.raises(UserError, match="not a valid choice") as raised:
        plan([f"backbone={backbone}", "tasks=vision", "tasks.names=[a]", "backbone.augment=crop_flp"], multirun=False)
    assert (raised.value.key, raised.value.nearest) == ("backbone.augment", "crop_flip")
    assert raised.value.expected == "one of none, crop, crop_flip"
