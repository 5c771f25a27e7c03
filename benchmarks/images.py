"""python benchmarks/images.py --json FILE: a pass of CLIP ViT-B/32 over images, by how these come to the model.

Random weights, JPEG files of 500 x 375 pixels. FILE becomes a list of objects: ``way`` (``whole``: all images are decoded
before the model begins, and stay in memory; ``ahead``: one batch ahead of it; ``kept``: read from one file of decoded
images), ``seconds`` (of a pass, the median), ``ratio`` (to ``whole``), ``input_seconds`` (of a pass without the model),
``added_kb`` (the memory that the pass adds at its peak).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import memory
import numpy as np
import torch
from PIL import Image

from twin_merging.backbones.clip import ClipBackbone
from twin_merging.backbones.image_classifier import ImageClassifierBackbone
from twin_merging.backbones.pixels import KeptPixels, Pixels, save_pixels
from twin_merging.config import Clip

BATCH = 64


def photographs(count: int) -> dict[str, bytes]:
    """Files with what a decoder has to do: smooth noise in three channels."""
    found, chance = {}, np.random.default_rng(0)
    for _ in range(count):
        coarse = Image.fromarray(chance.integers(0, 256, (30, 40, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        found[hashlib.sha256(file.getvalue()).hexdigest()] = file.getvalue()
    return found


def ways(backbone: ImageClassifierBackbone, images: dict[str, bytes], file: Path) -> dict[str, Callable[[], Pixels]]:
    """What gives a pass its images."""
    keys, tokens = list(images), 50
    save_pixels(backbone.decoded(images, keys), file)
    kept = KeptPixels(file, keys, backbone.side)

    def whole() -> Pixels:
        decoded = dict(zip(keys, torch.stack(list(backbone.decoded(images, keys))), strict=True))
        return Pixels(keys, tokens, lambda some: [decoded[key] for key in some])

    return {
        "whole": whole,
        "ahead": lambda: Pixels(keys, tokens, lambda some: list(backbone.decoded(images, some))),
        "kept": lambda: Pixels(keys, tokens, lambda some: [kept[key] for key in some]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    backbone = ClipBackbone(Clip(pretrained=None), Path(), device, autocast=device.type == "cuda")
    encoder, images = backbone.encoder(backbone.load(Path(), 2)), photographs(given.images)
    seconds: dict[str, list[float]] = {}
    alone: dict[str, list[float]] = {}
    added: dict[str, int | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        found = ways(backbone, images, Path(folder) / "pixels.bin")
        for turn in range(given.rounds + 1):  # the first one warms up
            for name, way in found.items():
                before, start = memory.settled(), time.perf_counter()
                backbone.encode(encoder, way(), BATCH, name)
                taken = time.perf_counter() - start
                added[name] = memory.added_since(before)
                start = time.perf_counter()
                inputs = way()
                for _ in backbone.batches(
                    inputs, [range(i, min(i + BATCH, len(images))) for i in range(0, len(images), BATCH)]
                ):
                    pass
                if turn:
                    seconds.setdefault(name, []).append(taken)
                    alone.setdefault(name, []).append(time.perf_counter() - start)
    rows = [
        {
            "way": name, "device": str(device), "images": len(images), "seconds": median(seconds[name]),
            "ratio": median(seconds[name]) / median(seconds["whole"]), "input_seconds": median(alone[name]), "added_kb": added[name],
        }
        for name in found
    ]  # fmt: skip
    given.json.write_text(json.dumps(rows, indent=1))
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
