"""python benchmarks/images.py --json FILE: rows of training a second, by how images come to CLIP's ViT-B/32.

Two sets of images, which are made here: photographs (JPEG, 500 x 375) and tiles (PNG, 256 x 256). The ways:

- ``alone``: the process that trains decodes them by one thread;
- ``threads``: by one a processor, as it does with ``finetune.workers=0``;
- ``workers``: as many processes as processors do, ahead of it;
- ``crops``: the same, and each image's part is drawn anew (``backbone.augment=crop``);
- ``kept``: they were decoded before, and are read from one file.

No model runs. FILE becomes a list of objects: ``set``, ``way``, ``rows_per_second``, ``ratio`` to those of ``alone``, and
``own_ratio``, the seconds of processors that the process which trains takes itself, as a share of those of ``alone`` (all ways run
in turns after one that does not count; the least counts).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from twin_merging.ahead import processors
from twin_merging.backbones import image_classifier
from twin_merging.backbones.clip import ClipBackbone
from twin_merging.backbones.pixels import KeptPixels, save_pixels
from twin_merging.config import Clip
from twin_merging.experts.fine_tuning import labelled
from twin_merging.tasks.base import SPLITS, TRAIN, Split, Task

SETS = {"photographs": ("JPEG", (500, 375)), "tiles": ("PNG", (256, 256))}
BATCH = 64


def made(name: str, count: int, folder: Path) -> Task:
    """A set of smooth noise in three channels, stored as the cache does."""
    kind, size = SETS[name]
    chance, images = np.random.default_rng(0), {}
    for _ in range(count):
        coarse = Image.fromarray(chance.integers(0, 256, (size[1] // 12, size[0] // 12, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize(size, Image.Resampling.BICUBIC).save(file, kind, quality=90)
        images[hashlib.sha256(file.getvalue()).hexdigest()] = file.getvalue()
    rows = Split([(key,) for key in images], [row % 2 for row in range(len(images))])
    splits = {split: rows if split == TRAIN else rows.take([0]) for split in SPLITS}
    Task(name, "single_label", ("a", "b"), None, "accuracy", splits, {}, images).save(folder)
    return Task.load(folder)


class Pass(NamedTuple):
    """Seconds of one pass over the training rows, and those of processors in this process alone."""

    seconds: float
    own: float


def one_pass(backbone: ClipBackbone, task: Task, workers: int) -> Pass:
    rows = labelled(backbone.training_inputs(task, 0), task, TRAIN)
    start, own = time.perf_counter(), time.process_time()
    for _ in DataLoader(rows, BATCH, num_workers=workers, collate_fn=backbone.collate):
        pass
    return Pass(time.perf_counter() - start, time.process_time() - own)


@contextmanager
def one_thread() -> Iterator[None]:
    before, image_classifier.processors = image_classifier.processors, lambda: 1
    try:
        yield
    finally:
        image_classifier.processors = before


def ways_of(task: Task, folder: Path) -> dict[str, Callable[[], Pass]]:
    plain, crops = (
        ClipBackbone(Clip(pretrained=None, augment=kind), Path(), torch.device("cpu"), False)
        for kind in ("none", "crop")
    )
    assert task.images is not None
    save_pixels(plain.decoded(task.images, list(task.images)), folder / "pixels.bin")
    kept = replace(task, pixels=KeptPixels(folder / "pixels.bin", task.images, plain.side))

    def alone() -> Pass:
        with one_thread():
            return one_pass(plain, task, 0)

    return {
        "alone": alone,
        "threads": lambda: one_pass(plain, task, 0),
        "workers": lambda: one_pass(plain, task, processors()),
        "crops": lambda: one_pass(crops, task, processors()),
        "kept": lambda: one_pass(plain, kept, 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--images", type=int, default=512, help="of each set")
    parser.add_argument("--turns", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as place:
        for name in SETS:
            folder = Path(place) / name
            task = made(name, asked.images, folder)
            ways = ways_of(task, folder)
            times: dict[str, list[Pass]] = {way: [] for way in ways}
            for turn in range(asked.turns + 1):
                for way, run in ways.items():
                    taken = run()
                    if turn:
                        times[way].append(taken)
            least = {way: Pass(*map(min, zip(*taken, strict=True))) for way, taken in times.items()}
            for way, (seconds, own) in least.items():
                found.append({
                    "set": name, "way": way, "rows_per_second": asked.images / seconds,
                    "ratio": least["alone"].seconds / seconds, "own_ratio": own / least["alone"].own,
                })  # fmt: skip
                print(json.dumps(found[-1]), flush=True)
    asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
