"""Small pictures of some images, in one picture: to look at, never to compute with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from twin_merging.tasks.images import decode

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE, COLUMNS = 96, 8  # pixels of a thumbnail's square; thumbnails in a row


def thumbnails(encoded: Sequence[bytes]) -> Image:
    """Image i in the square of ``SIDE`` pixels at column i mod ``COLUMNS`` and row i div ``COLUMNS``, white where there is none.

    An image keeps its ratio of sides and is centred; what is smaller is enlarged without smoothing.

    Raises:
        CorruptImage: if one cannot be decoded.
    """
    from PIL import Image

    lines = -(-len(encoded) // COLUMNS)
    sheet = Image.new("RGB", (SIDE * COLUMNS, SIDE * lines), "white")
    for place, data in enumerate(encoded):
        small = _fitted(decode(data))
        line, column = divmod(place, COLUMNS)
        sheet.paste(small, (column * SIDE + (SIDE - small.width) // 2, line * SIDE + (SIDE - small.height) // 2))
    return sheet


def _fitted(image: Image) -> Image:
    from PIL.Image import Resampling

    scale = SIDE / max(image.size)
    width, height = (max(round(scale * side), 1) for side in image.size)
    return image.resize((width, height), Resampling.NEAREST if scale > 1 else Resampling.LANCZOS)
