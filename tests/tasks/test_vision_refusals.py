"""Class folders of images, and what is wrong with a set of images."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from image_sets import (
    NAMES,
    error_of,
    key_of,
    keys_of,
    png,
    source,
    write_images,
    write_labels,
    write_parquet,
    write_task,
)

from twin_merging.errors import UserError
from twin_merging.tasks.base import Split

# --- folders ----------------------------------------------------------------------------------------------------------


def test_folders_of_images(tmp_path: Path):
    train = {
        "train/dog/b.PNG": png(1),
        "train/dog/a.jpg": png(2),
        "train/cat/z.ppm": png(3),
        "train/dog/readme.txt": b"-",
    }
    folder = write_images(tmp_path / "vision/pets", {**train, "test/cat/0.webp": png(4), "train/.git/x.png": png(5)})
    raw = source(tmp_path).load("pets")
    assert raw.class_names == ("cat", "dog")
    assert raw.splits["train"] == Split(keys_of([png(3), png(2), png(1)]), [0, 1, 1])
    assert raw.splits["test"] == Split(keys_of([png(4)]), [0])
    assert list(raw.images.values()) == [png(3), png(2), png(1), png(4)]
    assert raw.images.where(key_of(png(3))) == str(folder / "train/cat/z.ppm")
    write_labels(tmp_path, {"names": ["dog", "cat"]})
    assert source(tmp_path).load("pets").splits["train"].labels == [1, 0, 0]
    assert set(source(tmp_path).rows_to_mirror("pets").files) == {"labels.json", *list(train)[:3], "test/cat/0.webp"}


@pytest.mark.parametrize(
    ("files", "labels", "key", "says"),
    [
        ({"train/dog/a.txt": b"-"}, NAMES, "train/dog", "there are no image files in this class folder"),
        ({"train/a.png": png(0)}, NAMES, "train", "there is no class folder"),
        ({"train/dgo/a.png": png(0)}, NAMES, "train/dgo", "nearest:  dog"),
        ({"train/dog/a.png": png(0)}, None, "train", "two or more distinct names"),
        ({"test/dog/a.png": png(0)}, NAMES, "", "there is no train split"),
    ],
)
def test_a_wrong_folder_is_refused(tmp_path: Path, files: dict, labels: object, key: str, says: str):
    folder = write_images(tmp_path / "vision/pets", files)
    if labels:
        write_labels(tmp_path, labels)
    found = error_of(tmp_path)
    assert says in str(found)
    assert found.key == str(folder / key)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels", ["{", "[]", {}, {"names": "ab"}, {"names": ["a"]}, {"names": ["a", "a"]}, {"names": ["a", 1]}]
)
def test_a_wrong_labels_file_is_refused(tmp_path: Path, labels: object):
    folder = write_task(tmp_path)
    write_labels(tmp_path, labels)
    found = error_of(tmp_path)
    assert found.key == str(folder / "labels.json")
    assert '{"names"' in found.expected


def test_a_missing_labels_file_and_a_missing_train_split_are_refused(tmp_path: Path):
    folder = write_task(tmp_path)
    (folder / "labels.json").unlink()
    assert error_of(tmp_path).key == str(folder / "labels.json")
    write_labels(tmp_path)
    (folder / "train.parquet").unlink()
    found = error_of(tmp_path)
    assert (found.key, found.found) == (str(folder), "labels.json, test.parquet")
    assert "train.parquet" in found.expected


@pytest.mark.parametrize("label", [2, -1, "dgo", None, 0.5, True])
def test_a_label_outside_the_classes_is_refused(tmp_path: Path, label: object):
    folder = write_labels(tmp_path)
    write_parquet(folder / "train.parquet", [png(0)], [label])
    found = error_of(tmp_path)
    assert found.key == f"{folder / 'train.parquet'}, row 0"
    assert (found.found, found.nearest) == (repr(label), "dog" if label == "dgo" else None)
    assert found.expected == "0 to 1, or one of cat, dog"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"img": [b"x"], "label": [0]}, "image"),
        ({"image": [b"x"], "labels": [0]}, "label"),
        ({"image": ["a.png"], "label": [0]}, "binary, or {bytes, path}"),
        ({"image": [{"path": "a.png"}], "label": [0]}, "binary, or {bytes, path}"),
    ],
)
def test_a_parquet_file_without_the_columns_is_refused(tmp_path: Path, columns: dict, expected: str):
    folder = write_labels(tmp_path)
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "train.parquet")
    found = error_of(tmp_path)
    assert (found.key, found.expected) == (str(folder / "train.parquet"), expected)
    with pytest.raises(UserError):
        source(tmp_path).identity("pets")


def test_an_unreadable_parquet_file_is_refused(tmp_path: Path):
    folder = write_task(tmp_path)
    for data in (b"not parquet", (folder / "train.parquet").read_bytes()[:-30]):
        (folder / "train.parquet").write_bytes(data)
        found = error_of(tmp_path)
        assert (found.key, found.expected) == (str(folder / "train.parquet"), "a valid parquet file")
