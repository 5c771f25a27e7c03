"""Small image sets as users keep them: parquet files and class folders."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from twin_merging import config
from twin_merging.errors import UserError
from twin_merging.tasks.vision import Vision

BYTES_AND_PATH = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
NAMES = {"names": ["cat", "dog"]}


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (2, 2), (shade % 256, shade // 256, 0)).save(stream, "png")
    return stream.getvalue()


def key_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def keys_of(images: Sequence[bytes]) -> list[tuple[str, ...]]:
    return [(key_of(image),) for image in images]


def source(data: Path | None, mirror: Path | None = None) -> Vision:
    paths = config.Paths(data=data and str(data), mirror=mirror and str(mirror))
    return Vision(config.VisionTasks(names=["pets"]), paths)


def write_labels(data: Path, labels: object = NAMES, name: str = "pets") -> Path:
    folder = data / "vision" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.json").write_text(labels if isinstance(labels, str) else json.dumps(labels))
    return folder


def write_parquet(path: Path, images: Sequence[Any], labels: Sequence[Any], group: int = 1000, kind=BYTES_AND_PATH):
    """Of ``images`` some bytes become {bytes, path} if ``kind`` is a struct."""
    if kind == BYTES_AND_PATH:
        images = [{"bytes": image, "path": None} if isinstance(image, bytes) else image for image in images]
    columns = {"other": list(range(len(images))), "image": pyarrow.array(images, kind), "label": list(labels)}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=group)


def write_task(data: Path, train: int = 20, test: int = 4) -> Path:
    folder = write_labels(data)
    write_parquet(folder / "train.parquet", [png(shade) for shade in range(train)], [n % 2 for n in range(train)])
    write_parquet(
        folder / "test.parquet", [png(shade) for shade in range(train, train + test)], [n % 2 for n in range(test)]
    )
    return folder


def write_images(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def error_of(data: Path) -> UserError:
    with pytest.raises(UserError) as raised:
        source(data).load("pets")
    return raised.value
