"""Images of a task by the SHA-256 of their encoded bytes: decoded, checked, and stored in one file that is mapped."""

from __future__ import annotations

import io
import mmap
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from twin_merging.ahead import ahead, processors
from twin_merging.errors import UserError
from twin_merging.progress import progress
from twin_merging.tasks.base import Split, Task
from twin_merging.tasks.checks import check_not_empty

if TYPE_CHECKING:
    from PIL.Image import Image

BYTES, TABLE = "images.bin", "images.parquet"
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF", "GIF")  # and none for which PIL starts another program
PIXELS = 178_956_970  # from here on PIL itself takes a file for a decompression bomb
AHEAD = 8  # images a worker that wait to be decoded, and so are in memory


class CorruptImage(ValueError):
    """Bytes that are no image, or one that is cut off or too large to decode."""


class PlacedImages(Mapping[str, bytes]):
    """Encoded images by key, each read when it is asked for; fastest in the order of iteration."""

    @abstractmethod
    def where(self, key: str) -> str:
        """Where an image lies, in words."""


class StoredImages(PlacedImages):
    """What ``save_images`` wrote into ``folder``; nothing is read before an image is asked for.

    Raises:
        UserError: when an image is asked for, if the file is shorter or longer than its table says.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def __getitem__(self, key: str) -> bytes:
        start, length = self._spans[key]
        return self._bytes[start : start + length]

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __reduce__(self):
        return StoredImages, (self.folder,)

    def where(self, key: str) -> str:
        """File and byte."""
        return f"{self.folder / BYTES}, byte {self._spans[key][0]}"

    @cached_property
    def _spans(self) -> dict[str, tuple[int, int]]:
        import pyarrow.parquet

        keys, starts, lengths = pyarrow.parquet.read_table(self.folder / TABLE).columns
        return dict(
            zip(keys.to_pylist(), zip(starts.to_pylist(), lengths.to_pylist(), strict=True), strict=True),
        )

    @cached_property
    def _bytes(self) -> mmap.mmap | bytes:
        path, size = self.folder / BYTES, max((start + length for start, length in self._spans.values()), default=0)
        if path.stat().st_size != size:
            raise UserError("damaged or incomplete", key=str(path), found=f"{path.stat().st_size} bytes", expected=size)
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""


def is_stored(folder: Path) -> bool:
    """Whether ``save_images`` wrote into ``folder``."""
    return (folder / TABLE).is_file()


def save_images(images: Mapping[str, bytes], keys: Collection[str], folder: Path) -> None:
    """Write the images of ``keys``, each once and one after the other, and a table of where each begins."""
    import pyarrow
    import pyarrow.parquet

    names: list[str] = []
    starts, lengths, end = [], [], 0
    with (folder / BYTES).open("wb") as file, progress("images", len(set(keys)), "images") as bar:
        for key, data in in_order(images, keys):
            file.write(data)
            names.append(key)
            starts.append(end)
            lengths.append(len(data))
            end += len(data)
            bar.advance()
    whole = pyarrow.int64()
    columns = [pyarrow.array(names, pyarrow.string()), pyarrow.array(starts, whole), pyarrow.array(lengths, whole)]
    pyarrow.parquet.write_table(pyarrow.table(columns, ["key", "offset", "length"]), folder / TABLE)


def in_order(images: Mapping[str, bytes], keys: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """The images of ``keys``, each once, in the order in which ``images`` reads fastest: its own.

    Raises:
        KeyError: at the end, for a key that ``images`` has not.
    """
    left = set(keys)
    for key in images:
        if key in left:
            left.remove(key)
            yield key, images[key]
    if left:
        raise KeyError(min(left))


def decode(data: bytes) -> Image:
    """An image in RGB: transparency is dropped, 16 bits become 8, an orientation that EXIF gives is not applied.

    Raises:
        CorruptImage: if PIL cannot decode it, or it has more than ``PIXELS``.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > PIXELS:
                raise CorruptImage(f"{image.width} x {image.height} pixels, of {PIXELS} at most")
            if image.mode.startswith("I"):  # PIL would clip 16 bits, not scale them
                return image.point(lambda value: value / 256).convert("L").convert("RGB")
            return image.convert("RGB")
    except (CorruptImage, MemoryError):
        raise
    except Exception as error:  # its decoders raise dozens of types on bytes that are damaged
        raise CorruptImage(" ".join(str(error).split())[:200] or type(error).__name__) from error


def opened(images: Mapping[str, bytes], key: str) -> Image:
    """The image of a key, decoded.

    Raises:
        UserError: if it cannot be, as an image that was checked before can unless its file has changed.
    """
    try:
        return decode(images[key])
    except CorruptImage as error:
        place = f" ({images.where(key)})" if isinstance(images, PlacedImages) else ""
        raise UserError(f"cannot be decoded ({error}), as it could be before", key=f"image {key}{place}") from error


def without_corrupt(task: Task, most: float) -> Task:
    """Leave out rows whose image cannot be decoded, which ``provenance["rows"]["corrupt"]`` counts by split.

    Args:
        most: share of a split's images that may be left out.

    Raises:
        UserError: if more of a split cannot be decoded, or all of it.
    """
    if task.images is None:
        return task
    reasons = _corrupt(task.images, used_keys(task), f"{task.name}: images decoded")
    kept = {name: _without(split, reasons) for name, split in task.splits.items()}
    for name, split in task.splits.items():
        if (len(split) - len(kept[name])) / len(split) > most:
            raise _too_many(task, name, reasons, most)
        check_not_empty(task.name, name, kept[name], "images, of which none can be decoded")
    rows = {
        **task.provenance.get("rows", {}),
        "corrupt": {name: len(split) - len(kept[name]) for name, split in task.splits.items()},
        "used": {name: len(split) for name, split in kept.items()},
    }
    prints = {name: split.fingerprint() for name, split in kept.items()}
    return replace(task, splits=kept, provenance={**task.provenance, "rows": rows, "fingerprints": prints})


def used_keys(task: Task) -> set[str]:
    """The keys of the images of all splits."""
    return {key for split in task.splits.values() for (key,) in split.texts}


def _without(split: Split, reasons: Mapping[str, str]) -> Split:
    return split.take([row for row, (key,) in enumerate(split.texts) if key not in reasons])


def _too_many(task: Task, name: str, reasons: Mapping[str, str], most: float) -> UserError:
    split, images = task.splits[name], task.images
    corrupt = [key for (key,) in split.texts if key in reasons]
    place = f" ({images.where(corrupt[0])})" if isinstance(images, PlacedImages) else ""
    return UserError(
        "too many images cannot be decoded",
        key=f"task {task.name}, {name}",
        found=f"{len(corrupt)} of {len(split)} ({len(corrupt) / len(split):.1%}), such as {corrupt[0]}{place}: {reasons[corrupt[0]]}",
        expected=f"at most {most:.1%}",
        hint="tasks.corrupt is the share of a split that may be left out",
    )


def _corrupt(images: Mapping[str, bytes], keys: Collection[str], label: str) -> dict[str, str]:
    """Of the images of ``keys`` that cannot be decoded: why."""
    reasons: dict[str, str] = {}
    with progress(label, len(keys), "images") as bar:
        for key, reason in ahead(_reason, in_order(images, keys), AHEAD * processors(), processors()):
            if reason:
                reasons[key] = reason
            bar.advance()
    return reasons


def _reason(image: tuple[str, bytes]) -> tuple[str, str | None]:
    key, data = image
    try:
        decode(data)
    except CorruptImage as error:
        return key, str(error)
    return key, None
