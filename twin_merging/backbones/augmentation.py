"""Images drawn anew for each epoch of training: a part of each, or its mirror image."""

from __future__ import annotations

import hashlib
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as images

if TYPE_CHECKING:
    from PIL.Image import Image

SCALE = (0.9, 1.0)  # share of the image's area
RATIO = (3 / 4, 4 / 3)  # width / height
MIRRORED = 0.5  # probability
_one_at_a_time = Lock()  # torchvision draws from the process's generator


class Part(NamedTuple):
    """A rectangle of an image, in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


def drawn_part(image: Image, kind: str, draw: str) -> Part:
    """The part of an image that a model sees; equal for images of equal size and equal ``draw``.

    Its area is uniform in ``SCALE`` of the image's, the logarithm of width / height in that of ``RATIO``, and its place among
    those that are left. Of ten draws the first that fits is taken; if none does, the middle, as wide or high as ``RATIO``
    allows. These are the crops of open_clip's training transform, in 2.0.2, by which task arithmetic (Ilharco et al. 2023)
    fine-tuned the vision suite, as in later ones. No other draw of the process is changed.

    Args:
        kind: ``crop``, or ``crop_flip``, of which half is mirrored.
        draw: what is drawn from.
    """
    seed = int.from_bytes(hashlib.sha256(draw.encode()).digest()[:4], "big")
    with _one_at_a_time, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # and not a GPU's
        top, left, height, width = RandomResizedCrop.get_params(image, list(SCALE), list(RATIO))
        mirrored = kind == "crop_flip" and bool(torch.rand(1) < MIRRORED)
    return Part(top, left, height, width, mirrored)


def augmented(image: Image, kind: str, side: int, draw: str) -> Tensor:
    """``drawn_part`` of an image, resized bicubically: bytes of (3, ``side``, ``side``)."""
    part = drawn_part(image, kind, draw)
    seen = images.resized_crop(image, *part[:4], [side, side], InterpolationMode.BICUBIC)
    return images.pil_to_tensor(images.hflip(seen) if part.mirrored else seen)
