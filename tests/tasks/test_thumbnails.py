from __future__ import annotations

import numpy as np
import pytest
from backbones.tiny_images import png

from twin_merging.tasks.images import CorruptImage
from twin_merging.tasks.thumbnails import COLUMNS, SIDE, thumbnails


def square(sheet, place: int) -> np.ndarray:
    line, column = divmod(place, COLUMNS)
    return np.asarray(sheet)[line * SIDE : (line + 1) * SIDE, column * SIDE : (column + 1) * SIDE]


def test_each_image_has_its_square_in_the_order_given():
    shades = range(0, 200, 20)
    sheet = thumbnails([png(np.full((12, 12, 3), shade, np.uint8)) for shade in shades])
    assert sheet.size == (SIDE * COLUMNS, SIDE * 2)
    for place, shade in enumerate(shades):
        assert (square(sheet, place) == shade).all()
    assert (square(sheet, 10) == 255).all()  # none is left


def test_a_small_image_is_enlarged_without_smoothing():
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    assert (square(thumbnails([png(pixels)]), 0) == pixels.repeat(SIDE // 8, 0).repeat(SIDE // 8, 1)).all()


def test_a_wide_image_keeps_its_ratio_between_white_margins():
    found = square(thumbnails([png(np.zeros((100, 400, 3), np.uint8))]), 0)
    height = SIDE // 4
    top = (SIDE - height) // 2
    assert (found[top : top + height] == 0).all()
    assert (found[:top] == 255).all()
    assert (found[top + height :] == 255).all()


def test_what_is_no_image_is_refused():
    with pytest.raises(CorruptImage):
        thumbnails([b"no image"])
