from __future__ import annotations

import hashlib
import io
import zlib

import numpy as np
import pytest
from PIL import Image

from twin_merging.errors import UserError
from twin_merging.tasks.png import encode_grey

KNOWN = "cca2584e9c7532e9e12c51caf4320d70de6df06f82f6a9df30492257a467103e"


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (28, 28), (3, 7), (257, 255), (300, 700), (1, 65534), (1, 65535)])
def test_another_reader_finds_the_same_pixels(shape: tuple[int, int]):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    content = encode_grey(pixels)
    assert len(zlib.decompress(content[content.index(b"IDAT") + 4 :])) == shape[0] * (shape[1] + 1)
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.array(image), pixels)


def test_its_bytes_are_always_these():
    content = encode_grey(np.arange(12, dtype=np.uint8).reshape(3, 4))
    assert hashlib.sha256(content).hexdigest() == KNOWN
    assert encode_grey(np.arange(24, dtype=np.uint8).reshape(3, 8)[:, :4]) != content
    assert encode_grey(np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4))) == content


@pytest.mark.parametrize("pixels", [np.zeros((2, 2)), np.zeros((2, 2, 3), np.uint8), np.zeros((0, 2), np.uint8)])
def test_what_is_no_grey_picture_is_refused(pixels: np.ndarray):
    with pytest.raises(UserError, match="no grey picture"):
        encode_grey(pixels)
