from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from image_sets import (
    BYTES_AND_PATH,
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

from twin_merging import config
from twin_merging.compose import plan
from twin_merging.errors import UserError
from twin_merging.pipeline import compute
from twin_merging.pipeline.cache import Cache
from twin_merging.pipeline.stages import Stages
from twin_merging.tasks import image_files
from twin_merging.tasks.base import Split, Task
from twin_merging.tasks.images import decode
from twin_merging.tasks.splits import prepare
from twin_merging.tasks.vision import Vision

# --- parquet ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BYTES_AND_PATH, pyarrow.binary(), pyarrow.large_binary()])
def test_parquet_of_images(tmp_path: Path, kind: pyarrow.DataType):
    folder, data = write_labels(tmp_path, {**NAMES, "note": "drawn", "more": 1}), [png(0), png(1), png(2)]
    write_parquet(folder / "train.parquet", data, [1, 0, 1], kind=kind)
    write_parquet(folder / "validation.parquet", [png(3)], [0], kind=kind)
    write_parquet(folder / "test.parquet", [png(4), data[0]], ["dog", "cat"], kind=kind)
    raw = source(tmp_path).load("pets")
    assert {"pets", "digits"} <= {*source(tmp_path).known()}
    assert source(tmp_path).assets("pets") == ()
    assert raw.splits["train"] == Split(keys_of(data), [1, 0, 1])
    assert raw.splits["validation"] == Split(keys_of([png(3)]), [0])
    assert raw.splits["test"] == Split(keys_of([png(4), data[0]]), [1, 0])
    assert (raw.class_names, raw.kind, raw.metric, raw.columns) == (("cat", "dog"), "single_label", "accuracy", 1)
    assert dict(raw.images) == {key_of(each): each for each in [*data, png(3), png(4)]}
    assert raw.images.where(key_of(data[0])) == f"{folder / 'train.parquet'}, row 0 of row group 0"
    assert raw.provenance["note"] == "drawn"
    assert raw.provenance["splits"]["train"] == "train.parquet"


def test_shards_are_one_split_in_their_order(tmp_path: Path):
    folder = write_labels(tmp_path)
    for shard in (2, 0, 1):
        write_parquet(folder / f"train-0000{shard}-of-00003.parquet", [png(2 * shard), png(2 * shard + 1)], [0, 1])
    raw = source(tmp_path).load("pets")
    assert raw.splits["train"].texts == keys_of([png(shade) for shade in range(6)])
    assert list(raw.images.values()) == [png(shade) for shade in range(6)]
    assert raw.provenance["splits"] == {"train": "train, 3 files"}
    (folder / "train-00001-of-00003.parquet").unlink()
    assert "train-00001-of-00003.parquet" in error_of(tmp_path).expected


def test_images_beside_the_parquet_file(tmp_path: Path):
    folder = write_labels(tmp_path)
    write_images(folder, {"files/a.png": png(1), "b.png": png(2)})
    rows = [{"bytes": None, "path": "files/a.png"}, png(0), {"bytes": None, "path": "b.png"}]
    write_parquet(folder / "train.parquet", rows, [0, 1, 1])
    raw = source(tmp_path).load("pets")
    assert raw.splits["train"].texts == keys_of([png(1), png(0), png(2)])
    assert [raw.images[key] for (key,) in raw.splits["train"].texts] == [png(1), png(0), png(2)]
    assert raw.images.where(key_of(png(1))) == str(folder / "files/a.png")
    mirrored = source(tmp_path).rows_to_mirror("pets")
    assert mirrored.place == "vision/pets"
    assert set(mirrored.files) == {"labels.json", "train.parquet", "files/a.png", "b.png"}
    before = source(tmp_path).identity("pets")
    (folder / "b.png").write_bytes(png(3))
    assert source(tmp_path).identity("pets") != before


@pytest.mark.parametrize(
    "path", ["../../secret.png", "/etc/passwd", "a/../../b.png", "..\\b.png", "C:\\b.png", "\\\\h\\b"]
)
def test_a_path_that_leads_out_is_refused(tmp_path: Path, path: str):
    folder = write_labels(tmp_path)
    (tmp_path / "secret.png").write_bytes(png(9))
    write_parquet(folder / "train.parquet", [png(0), {"bytes": None, "path": path}], [0, 1])
    found = error_of(tmp_path)
    assert (found.message, found.found) == ("the path of an image leads out of the folder", path)
    assert found.key == f"{folder / 'train.parquet'}, row 1"
    with pytest.raises(UserError, match="leads out"):
        source(tmp_path).identity("pets")


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ({"bytes": None, "path": "gone.png"}, "cannot be read (No such file or directory)"),
        ({"bytes": None, "path": None}, "the row has no image"),
        ({"bytes": None, "path": ""}, "the row has no image"),
        (None, "the row has no image"),
    ],
)
def test_a_row_without_an_image_is_refused(tmp_path: Path, image: dict | None, says: str):
    folder = write_labels(tmp_path)
    write_parquet(folder / "train.parquet", [png(0), png(1), image], [0, 1, 1])
    found = error_of(tmp_path)
    assert says in found.message
    assert found.key == f"{folder / 'train.parquet'}, row 2"


def test_one_image_reads_one_row_group_and_of_it_no_more_than_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(image_files, "BATCH", 5)
    folder, data = write_labels(tmp_path), [png(shade) for shade in range(100)]
    write_parquet(folder / "train.parquet", data, [0, 1] * 50, group=20)
    read: list[tuple[int, int]] = []
    real = image_files._batches

    def watched(path: Path, group: int, columns: list[str]):
        for batch in real(path, group, columns):
            read.append((group, len(batch[0])))
            yield batch

    monkeypatch.setattr(image_files, "_batches", watched)
    images = source(tmp_path).load("pets").images
    assert read == [(group, 5) for group in range(5) for _ in range(4)]
    read.clear()
    assert images[key_of(data[46])] == data[46]
    assert read == [(2, 5), (2, 5)]
    assert images.where(key_of(data[46])) == f"{folder / 'train.parquet'}, row 6 of row group 2"
    read.clear()
    assert list(images.values()) == data
    assert len(read) == 20
    read.clear()
    assert [images[key_of(data[row])] for row in (46, 3, 12, 11, 3)] == [data[row] for row in (46, 3, 12, 11, 3)]
    assert [group for group, _ in read] == [2, 2, 0, 0, 0, 0]
    with pytest.raises(KeyError):
        images["f" * 64]


def test_a_row_group_is_not_held_in_memory(tmp_path: Path):
    folder, data = write_labels(tmp_path), [row.to_bytes(2) * 50_000 for row in range(400)]
    table = pyarrow.table({"image": data, "label": [0, 1] * 200})
    pyarrow.parquet.write_table(
        table, folder / "train.parquet", write_batch_size=4, use_dictionary=False, compression="none"
    )
    del table
    before = pyarrow.total_allocated_bytes()
    most = max(pyarrow.total_allocated_bytes() for _ in image_files.parquet_rows(folder / "train.parquet"))
    assert most - before < 20_000_000 < (folder / "train.parquet").stat().st_size


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path):
    folder = write_task(tmp_path)
    images = source(tmp_path).load("pets").images
    write_parquet(folder / "train.parquet", [png(shade) for shade in range(100, 110)], [0, 1] * 5)
    for row in (3, 15):
        with pytest.raises(UserError, match="has changed while it was read"):
            images[key_of(png(row))]


# --- where tasks are --------------------------------------------------------------------------------------------------


def test_identity_follows_every_file(tmp_path: Path):
    folder = write_task(tmp_path)
    write_images(folder, {"validation/cat/a.png": png(30), "validation/dog/b.png": png(31)})
    seen = {json.dumps(source(tmp_path).identity("pets"))}
    (folder / "labels.json").write_text(json.dumps(NAMES) + "\n")
    seen.add(json.dumps(source(tmp_path).identity("pets")))
    write_parquet(folder / "test.parquet", [png(40)], [1])
    seen.add(json.dumps(source(tmp_path).identity("pets")))
    (folder / "validation/cat/a.png").write_bytes(png(32))
    seen.add(json.dumps(source(tmp_path).identity("pets")))
    (folder / "validation/dog/b.png").rename(folder / "validation/dog/c.png")
    assert len({*seen, json.dumps(source(tmp_path).identity("pets"))}) == 5
    assert set(source(tmp_path).identity("pets")["files"]) == {
        "labels.json",
        "train.parquet",
        "test.parquet",
        "2 images",
    }


def test_data_goes_before_the_mirror(tmp_path: Path):
    write_task(tmp_path / "data", train=4)
    write_task(tmp_path / "mirror", train=6)
    (tmp_path / "mirror/vision/pets").rename(tmp_path / "mirror/vision/zoo")
    both = source(tmp_path / "data", tmp_path / "mirror")
    assert {"pets", "zoo"} <= {*both.known()}
    assert [len(both.load(name).splits["train"]) for name in ("pets", "zoo")] == [4, 6]
    write_task(tmp_path / "mirror", train=6)
    assert len(both.load("pets").splits["train"]) == 4
    assert len(source(None, tmp_path / "mirror").load("pets").splits["train"]) == 6


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"paths\.data: no such folder") as caught:
        source(tmp_path / "nowhere")
    assert caught.value.found == str(tmp_path / "nowhere")


def test_an_unknown_task_is_refused_with_the_nearest(tmp_path: Path):
    write_task(tmp_path)
    for ask in ("load", "assets", "identity", "rows_to_mirror"):
        with pytest.raises(UserError) as raised:
            getattr(source(tmp_path), ask)("pet")
        assert (raised.value.key, raised.value.nearest) == ("tasks.names", "pets")
        assert str(tmp_path / "vision") in raised.value.message


def test_what_is_in_no_folder_comes_from_the_offline_assets(tmp_path: Path):
    write_task(tmp_path)
    own, digits = source(tmp_path).load("pets"), source(tmp_path).load("digits")
    assert len(own.splits["train"]) < 100
    assert len(digits.splits["train"]) == 1797
    (tmp_path / "vision/pets").rename(tmp_path / "vision/digits")  # a folder of the same name goes before
    assert source(tmp_path).load("digits").splits == own.splits
    assert source(tmp_path).identity("digits") != source(None).identity("digits")


# --- the data stage ---------------------------------------------------------------------------------------------------


def data_stage(data: Path, folder: Path, **options: Any) -> Task:
    tasks = config.VisionTasks(names=["pets"], **options)
    run = SimpleNamespace(tasks=tasks)
    stages = SimpleNamespace(run=run, task_source=source(data), rows=lambda name: tasks.rows)
    compute.data(stages, "pets", folder, folder)
    return Task.load(folder)


def test_the_data_stage_leaves_out_what_cannot_be_decoded(tmp_path: Path):
    folder = write_task(tmp_path)
    write_parquet(folder / "train.parquet", [png(n) if n != 5 else b"broken" for n in range(40)], [0, 1] * 20)
    write_parquet(folder / "test.parquet", [png(n) for n in range(50, 54)], [0, 1] * 2)
    with pytest.raises(UserError, match=r"row 5 of row group 0"):
        data_stage(tmp_path, tmp_path / "none")
    task = data_stage(tmp_path, tmp_path / "out", corrupt=0.3)
    rows = task.provenance["rows"]
    assert sum(rows["corrupt"].values()) == 1
    assert rows["used"] == {name: len(split) for name, split in task.splits.items()}
    assert sum(rows["used"].values()) == 43
    assert task.provenance["fingerprints"] == {name: task.fingerprint(name) for name in task.splits}
    assert set(task.images) == {key for split in task.splits.values() for (key,) in split.texts}
    assert all(decode(data).size == (2, 2) for data in task.images.values())


def test_corrupt_images_and_rows_held_out_determine_the_data(tmp_path: Path):
    write_task(tmp_path)

    def key(*overrides: str) -> str:
        arguments = [
            "backbone=dinov2_small",
            "tasks=vision",
            "tasks.names=[pets]",
            f"paths.data={tmp_path}",
            *overrides,
        ]
        (run,) = plan(arguments, multirun=False).jobs
        return Stages(run, Cache(tmp_path / "cache")).data("pets").key

    assert len({key(), key("tasks.corrupt=0.01"), key("tasks.corrupt=0.5")}) == 2
    assert len({key(), key("tasks.held_out=null"), key("tasks.held_out=5")}) == 2


def test_real_images(shared_data: Path, tmp_path: Path):
    if not (shared_data / "vision/dtd").is_dir():
        pytest.skip("needs real images in ../shared/data/vision/dtd, which is not here")
    vision = Vision(config.VisionTasks(), config.Paths(data=str(shared_data)))
    assert {"dtd", "mnist"} <= set(vision.known())
    task = prepare(vision.load("mnist"), config.Rows(), 30, 0)
    task.save(tmp_path)
    loaded = Task.load(tmp_path)
    assert {len(split) for split in loaded.splits.values()} == {30}
    assert len(loaded.images) == 90
    for (key,) in loaded.splits["test"].texts:
        assert key_of(loaded.images[key]) == key
        assert (decode(loaded.images[key]).size, decode(loaded.images[key]).mode) == ((28, 28), "RGB")
    assert loaded.provenance["rows"]["source"] == {"train": 2000, "test": 1000}
