"""Images as a model sees them, but for the scale of their numbers: made when they are asked for, or read from one file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from twin_merging.backbones.rows import Row
from twin_merging.errors import UserError

PIXELS = "pixel_values"
Make = Callable[[Sequence[str]], Iterable[Tensor]]
Draw = Callable[[Sequence[str], Sequence[str]], Iterable[Tensor]]


class ImageRows(Sequence[Row]):
    """Rows of one image each, of which none is in memory.

    Args:
        keys: of the images.
        make: the images of some keys, bytes of (3, S, S).
    """

    def __init__(self, keys: Sequence[str], make: Make):
        self.keys, self.make = keys, make

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row):
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Row]:
        return [{PIXELS: image} for image in self.make([self.keys[row] for row in rows])]


class Pixels:
    """A split's images, each of so many ``tokens``."""

    def __init__(self, keys: Sequence[str], tokens: int, make: Make):
        self.rows = ImageRows(keys, make)
        self.lengths = [tokens] * len(keys)


class DrawnRows(Sequence[Row]):
    """Rows of one image each, which every epoch draws anew.

    Args:
        keys: of the images.
        draw: the images of some keys, bytes of (3, S, S), and for each what it is drawn from.
        seed: what is drawn follows from it, the epoch, and the number of the row alone.
    """

    def __init__(self, keys: Sequence[str], draw: Draw, seed: str):
        self.keys, self.draw, self.seed = keys, draw, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Rows are from now on those of this epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row):
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Row]:
        draws = [f"{self.seed}, epoch {self.epoch}, row {row}" for row in rows]
        return [{PIXELS: image} for image in self.draw([self.keys[row] for row in rows], draws)]


class DrawnPixels:
    """A split's images, each of so many ``tokens``, drawn anew for each epoch."""

    def __init__(self, keys: Sequence[str], tokens: int, draw: Draw, seed: str):
        self.rows = DrawnRows(keys, draw, seed)
        self.lengths = [tokens] * len(keys)


def of_keys(images: Mapping[str, Tensor], keys: Sequence[str]) -> list[Tensor]:
    """The images of these keys."""
    return [images[key] for key in keys]


class KeptPixels(Mapping[str, Tensor]):
    """Images in one file, each of which is read anew when it is asked for: the system keeps in memory what there is room for.

    Args:
        path: bytes of (n, 3, S, S), as ``save_pixels`` wrote them.
        keys: of the images, in the order of the file.
        side: S.

    Raises:
        UserError: if the file is of another size, at once or when an image is read.
    """

    def __init__(self, path: Path, keys: Iterable[str], side: int):
        self._index = {key: number for number, key in enumerate(keys)}
        self._shape, self._bytes = (3, side, side), image_bytes(side)
        self.path = path
        self._check(path.stat().st_size, len(self._index) * self._bytes)

    def __getitem__(self, key: str) -> Tensor:
        image = torch.empty(self._shape, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self._index[key] * self._bytes)
            self._check(file.readinto(image.numpy().data), self._bytes)
        return image

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def _check(self, found: int, expected: int) -> None:
        if found != expected:
            raise UserError("damaged or incomplete", key=str(self.path), found=f"{found} bytes", expected=expected)


def image_bytes(side: int) -> int:
    """What an image takes up."""
    return 3 * side * side


def save_pixels(images: Iterable[Tensor], path: Path) -> None:
    """Write images, bytes of (3, S, S), one after the other."""
    with path.open("wb") as file:
        for image in images:
            file.write(image.contiguous().numpy().data)
