"""Images with labels in parquet files, as the hub has them, or in a folder a class; read in passing, one batch in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from threading import Lock
from typing import Any, NamedTuple

from twin_merging.errors import UserError, nearest
from twin_merging.tasks.images import PlacedImages

IMAGE, LABEL = "image", "label"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
BATCH = 64  # rows of a parquet file that are in memory at once
BUFFER = 1 << 20  # bytes of a parquet file that are read ahead, in place of a whole row group


class Place(NamedTuple):
    """Where an image is: a row of a parquet file's row group, or a file of its own, which has no group."""

    file: Path
    group: int | None = None
    row: int = 0


class Columns(NamedTuple):
    """What a parquet file calls an image and its label."""

    image: str = IMAGE
    label: str = LABEL


PLAIN = Columns()


class Row(NamedTuple):
    """An image with its label, and where in words the label was read."""

    data: bytes
    label: Any
    place: Place
    where: str


class SourceImages(PlacedImages):
    """The images of a source: of each, only its place is in memory.

    Iteration is in the order in which they were added, which is also the order to read them in: rows of a parquet file
    are reached by reading on from those before.

    Args:
        column: of images, in parquet files.
    """

    def __init__(self, column: str = IMAGE) -> None:
        self._column = column
        self._places: dict[str, Place] = {}
        self._cursor: _Cursor | None = None
        self._lock = Lock()

    def add(self, data: bytes, place: Place) -> str:
        """The key of an image, of which the first place is kept."""
        key = hashlib.sha256(data).hexdigest()
        self._places.setdefault(key, place)
        return key

    def __getitem__(self, key: str) -> bytes:
        place = self._places[key]
        data = self._row(place) if place.group is not None else read_image(place.file, self.where(key))
        if hashlib.sha256(data).hexdigest() != key:
            raise UserError("the file has changed while it was read", key=str(place.file), hint="start again")
        return data

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def where(self, key: str) -> str:
        """File, and in a parquet file the row."""
        place = self._places[key]
        return str(place.file) if place.group is None else f"{place.file}, row {place.row} of row group {place.group}"

    def _row(self, place: Place) -> bytes:
        with self._lock:
            if self._cursor is None or not self._cursor.can_reach(place):
                self._cursor = _Cursor(place, self._column)
            return self._cursor.read(place.row)


class _Cursor:
    """One batch of a row group, and those after it."""

    def __init__(self, place: Place, column: str):
        self.file, self.group, self.start = place.file, place.group, 0
        self._rows: list[Any] = []
        self._batches = _batches(place.file, place.group or 0, [column])

    def can_reach(self, place: Place) -> bool:
        return (self.file, self.group) == (place.file, place.group) and place.row >= self.start

    def read(self, row: int) -> bytes:
        while row >= self.start + len(self._rows):
            self.start += len(self._rows)
            (self._rows,) = next(self._batches, ([],))
            if not self._rows:
                raise UserError("the file has changed while it was read", key=str(self.file), hint="start again")
        found = self._rows[row - self.start]
        return found["bytes"] if isinstance(found, dict) else found


def parquet_rows(path: Path, columns: Columns = PLAIN) -> Iterator[Row]:
    """The rows of a parquet file with the ``columns`` of images, binary or {bytes, path}, and of labels.

    Raises:
        UserError: if it cannot be read, lacks a column, or a row has no image.
    """
    number = 0
    for group in range(_checked(path, columns).num_row_groups):
        row = 0
        for images, labels in _batches(path, group, [*columns]):
            for image, label in zip(images, labels, strict=True):
                where = f"{path}, row {number}"
                file = _file_of(image, path, where)
                place = Place(path, group, row) if file is None else Place(file)
                data = read_image(file, where) if file else image["bytes"] if isinstance(image, dict) else image
                yield Row(data, label, place, where)
                number, row = number + 1, row + 1


def count_rows(path: Path, columns: Columns = PLAIN) -> int:
    """How many rows a parquet file has.

    Raises:
        UserError: if it cannot be read or lacks a column.
    """
    return _checked(path, columns).num_rows


def files_beside(path: Path) -> list[Path]:
    """The image files that rows of a parquet file name in place of bytes.

    Raises:
        UserError: as of ``parquet_rows``.
    """
    about, found = _checked(path), []
    for group in range(about.num_row_groups):
        chunks = [about.row_group(group).column(index) for index in range(about.num_columns)]
        (bytes_,) = (chunk for chunk in chunks if chunk.path_in_schema in (IMAGE, f"{IMAGE}.bytes"))
        if bytes_.statistics is None or not bytes_.statistics.has_null_count or bytes_.statistics.null_count:
            images = (image for (batch,) in _batches(path, group, [IMAGE]) for image in batch)
            found += [file for image in images if (file := _file_of(image, path, str(path))) is not None]
    return list(dict.fromkeys(found))


def folder_rows(folder: Path) -> Iterator[Row]:
    """The images of ``folder``/CLASS/ by class and file name; the label is the class.

    Raises:
        UserError: if there is no class folder, or one without image files.
    """
    for place in class_folders(folder):
        for file in image_files(place):
            yield Row(read_image(file, str(file)), place.name, Place(file), str(place))


def class_folders(folder: Path) -> list[Path]:
    """The folders in ``folder``, hidden ones left out.

    Raises:
        UserError: if there is none.
    """
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise UserError("there is no class folder", key=str(folder), expected="a folder for each class, of image files")
    return found


def image_files(folder: Path) -> list[Path]:
    """The image files in a class folder, hidden ones left out.

    Raises:
        UserError: if there is none.
    """
    names = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found = [path for path in names if path.suffix.lower() in SUFFIXES]
    if not found:
        raise UserError(
            "there are no image files in this class folder",
            key=str(folder),
            found=", ".join(path.name for path in names[:5]) or "nothing",
            expected=f"files that end in {', '.join(SUFFIXES)}",
        )
    return found


def read_image(path: Path, where: str) -> bytes:
    """The bytes of a file.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"the image file cannot be read ({error.strerror})", key=where, found=path) from error


def _file_of(image: Any, parquet: Path, where: str) -> Path | None:
    """The file that a row names in place of bytes; None if it has bytes."""
    if image is not None and (not isinstance(image, dict) or image["bytes"] is not None):
        return None
    name = (image or {}).get("path")
    if not name:
        raise UserError("the row has no image", key=where, found="null", expected="bytes, or the path of a file")
    path = PureWindowsPath(name)  # which knows the separators of all systems
    if path.anchor or ".." in path.parts:
        raise UserError(
            "the path of an image leads out of the folder", key=where, found=name, expected="a file below the parquet file"
        )  # fmt: skip
    return parquet.parent / name


def _checked(path: Path, columns: Columns = PLAIN):
    """A parquet file's metadata, if it has the columns."""
    import pyarrow

    with _open(path) as file:
        about, schema = file.metadata, file.schema_arrow
    for name in columns:
        if name not in schema.names:
            raise UserError(
                "the file lacks a column", key=str(path), found=", ".join(schema.names), expected=name,
                nearest=nearest(name, schema.names),
            )  # fmt: skip
    kind = schema.field(columns.image).type
    fields = [kind.field(index) for index in range(kind.num_fields)] if pyarrow.types.is_struct(kind) else []
    inner = next((field.type for field in fields if field.name == "bytes"), kind)
    if not (pyarrow.types.is_binary(inner) or pyarrow.types.is_large_binary(inner)):
        raise UserError(
            f'the column "{columns.image}" has no images',
            key=str(path),
            found=kind,
            expected="binary, or {bytes, path}",
        )
    return about


def _batches(path: Path, group: int, columns: list[str]) -> Iterator[Iterable[list[Any]]]:
    """A row group by ``BATCH`` rows: each column's values."""
    with _open(path) as file:
        for batch in file.iter_batches(BATCH, row_groups=[group], columns=columns):
            yield [batch.column(name).to_pylist() for name in columns]


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
            yield file
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot read this file ({reason})", key=str(path), expected="a valid parquet file") from error
