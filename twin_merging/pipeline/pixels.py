"""A task's images decoded once, as the job's backbone sees them. No result hangs on whether they are: no stage has this as an input."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from twin_merging.backbones.pixels import KeptPixels, image_bytes, save_pixels
from twin_merging.config import backbones, bytes_of
from twin_merging.pipeline.cache import Cache
from twin_merging.pipeline.stage import Stage, by
from twin_merging.pipeline.stages import Stages
from twin_merging.progress import track
from twin_merging.tasks.base import Task

FILE = "pixels.bin"


def kept(stages: Stages, task: Task, backbone: Any) -> Mapping[str, Tensor] | None:
    """A task's images by key; None if they are not in the cache and may not be added.

    They may if they take up no more than ``backbone.pixels`` and than half of the free disk, and the cache is written to.
    """
    most = getattr(stages.run.backbone, "pixels", None)
    if task.images is None or most is None:
        return None
    step = stage(stages, task, backbone)
    size = len(task.images) * image_bytes(backbone.side)
    if stages.cache.find(step) is None and not _has_room(stages.cache, size, bytes_of(most, "backbone.pixels")):
        return None
    return _opened(stages.get(step).folder / FILE, stages.get(stages.data(task.name)).folder, backbone.side)


def stage(stages: Stages, task: Task, backbone: Any) -> Stage:
    """The images of a task's three splits: by the data, and by all that makes the backbone's input of them."""
    kind = stages.run.backbone.name
    options = {
        "source": stages.backbone_source.identity, "class": kind, "code": backbones[kind].code_hash(), **stages.reading,
    }  # fmt: skip
    return Stage("pixels", task.name, options, (stages.data(task.name),), by("pixels", "keep", task, backbone))


def keep(task: Task, backbone: Any, folder: Path, scratch: Path) -> None:
    """Decode a task's images in the order in which they are stored."""
    assert task.images is not None, "only asked for of images"
    keys = list(task.images)
    images = track(backbone.decoded(task.images, keys), f"{task.name}: images decoded", len(keys), "images")
    save_pixels(images, folder / FILE)


def _has_room(cache: Cache, size: int, most: int) -> bool:
    return cache.mode == "write" and size <= min(most, shutil.disk_usage(cache.root).free // 2)


@lru_cache(maxsize=64)
def _opened(path: Path, data: Path, side: int) -> KeptPixels:
    images = Task.load(data).images
    assert images is not None, "only asked for of images"
    return KeptPixels(path, images, side)
