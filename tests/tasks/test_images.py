from __future__ import annotations

import hashlib
import io
import pickle
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from PIL import Image

from twin_merging import config
from twin_merging.errors import UserError
from twin_merging.tasks import images as module
from twin_merging.tasks.base import RawTask, Split, Task
from twin_merging.tasks.images import CorruptImage, StoredImages, decode, save_images, without_corrupt
from twin_merging.tasks.splits import prepare


def encoded(image: Image.Image, kind: str = "png") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def png(shade: int, size: int = 3) -> bytes:
    return encoded(Image.new("RGB", (size, size), (shade, 0, 0)))


NOISE = encoded(Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=numpy.uint8)))
EPS, PCX = (encoded(Image.new("RGB", (4, 4)), kind) for kind in ("eps", "pcx"))  # formats that are not asked for


def key_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def task_of(*splits: list[bytes], images: Mapping[str, bytes] | None = None) -> Task:
    """Train, validation and test of these images."""
    rows = {
        name: Split([(key_of(data),) for data in split], [number % 2 for number in range(len(split))])
        for name, split in zip(("train", "validation", "test"), splits, strict=True)
    }
    images = images if images is not None else {key_of(data): data for split in splits for data in split}
    return Task("pets", "single_label", ("cat", "dog"), None, "accuracy", rows, {"rows": {"dropped": {}}}, images)


class Counting(dict):
    """A mapping that notes in which order it is read."""

    def __init__(self, content: Mapping[str, bytes]):
        super().__init__(content)
        self.asked: list[str] = []

    def __getitem__(self, key: str) -> bytes:
        self.asked.append(key)
        return super().__getitem__(key)


# --- decode -----------------------------------------------------------------------------------------------------------


def test_decode_gives_rgb():
    image = decode(encoded(Image.new("L", (4, 2), 7)))
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (4, 2), (7, 7, 7))
    image = decode(encoded(Image.new("RGBA", (1, 1), (1, 2, 3, 0))))
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (1, 2, 3))


def test_decode_scales_sixteen_bits():
    wide = Image.fromarray(numpy.array([[0, 256, 32768, 65535]], dtype=numpy.uint16))
    assert [decode(encoded(wide)).getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


def test_decode_leaves_the_orientation():
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    stream = io.BytesIO()
    image.save(stream, "jpeg", exif=exif)
    assert decode(stream.getvalue()).size == (4, 2)


@pytest.mark.parametrize("data", [b"", b"no image", NOISE[:-100], NOISE[:40], EPS, PCX])
def test_decode_refuses_damaged_bytes(data: bytes):
    with pytest.raises(CorruptImage):
        decode(data)


def test_decode_refuses_a_bomb(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PIXELS", 8)
    assert decode(encoded(Image.new("RGB", (4, 2)))).size == (4, 2)
    with pytest.raises(CorruptImage, match="3 x 3 pixels, of 8"):
        decode(png(0))


# --- stored images ----------------------------------------------------------------------------------------------------


def test_a_task_of_images_is_saved_and_loaded(tmp_path: Path):
    task = task_of([png(1), png(2)], [png(3)], [png(4), png(5)])
    task.save(tmp_path)
    loaded = Task.load(tmp_path)
    assert loaded == task == replace(task, images=None)
    assert dict(loaded.images) == task.images
    assert (tmp_path / "images.bin").read_bytes() == b"".join(task.images.values())
    assert loaded.fingerprint("train") == task.fingerprint("train")


def test_a_task_of_texts_has_no_images(tmp_path: Path):
    rows = {name: Split([("a",), ("b",)], [0, 1]) for name in ("train", "validation", "test")}
    task = Task("texts", "single_label", ("no", "yes"), None, "accuracy", rows, {})
    task.save(tmp_path)
    assert Task.load(tmp_path).images is None
    assert sorted(path.name for path in tmp_path.glob("images*")) == []
    assert without_corrupt(task, 0.0) is task


def test_only_used_images_are_stored_each_once_in_the_order_of_the_source(tmp_path: Path):
    first, second, third, unused = png(1), png(2), png(3), png(4)
    source = Counting({key_of(data): data for data in (third, unused, first, second)})
    task_of([first, second], [third], [first], images=source).save(tmp_path)
    assert source.asked == [key_of(third), key_of(first), key_of(second)]
    assert list(StoredImages(tmp_path).values()) == [third, first, second]


def test_stored_images_are_read_when_asked_for(tmp_path: Path):
    data = [png(shade) for shade in range(4)] + [b""]
    save_images({key_of(each): each for each in data}, [key_of(each) for each in data], tmp_path)
    stored = StoredImages(tmp_path)
    assert not stored.__dict__.keys() & {"_bytes", "_spans"}
    assert len(stored) == 5
    assert "_bytes" not in stored.__dict__
    assert [stored[key_of(each)] for each in data] == data
    assert stored.where(key_of(data[1])) == f"{tmp_path / 'images.bin'}, byte {len(data[0])}"
    assert pickle.loads(pickle.dumps(stored))[key_of(data[2])] == data[2]
    with pytest.raises(KeyError):
        stored["f" * 64]


def test_a_store_of_nothing_but_empty_images(tmp_path: Path):
    save_images({"k": b""}, ["k"], tmp_path)
    assert dict(StoredImages(tmp_path)) == {"k": b""}


def test_a_store_that_was_cut_off_is_refused(tmp_path: Path):
    data = png(1)
    save_images({key_of(data): data}, [key_of(data)], tmp_path)
    (tmp_path / "images.bin").write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"images\.bin: damaged") as raised:
        StoredImages(tmp_path)[key_of(data)]
    assert raised.value.expected == len(data)


def test_writing_streams(tmp_path: Path):
    """What was read is written before the next is read, but for the file's own small buffer."""
    written: list[int] = []

    class Images(dict):
        def __getitem__(self, key: str) -> bytes:
            written.append((tmp_path / "images.bin").stat().st_size)
            return bytes(100_000)

    save_images(Images.fromkeys("abc"), "abc", tmp_path)
    assert written == [0, 100_000, 200_000]


def test_a_key_without_an_image_is_an_error(tmp_path: Path):
    with pytest.raises(KeyError):
        save_images({"a": b"1"}, {"a", "b"}, tmp_path)


# --- corrupt images ---------------------------------------------------------------------------------------------------


def test_corrupt_images_are_left_out_and_counted():
    train = [png(shade) for shade in range(9)]
    train.insert(4, b"broken")
    task = task_of(train, [png(20)], [png(21), NOISE[:-100], png(23), png(24)])
    clean = without_corrupt(task, 0.25)
    assert clean.splits["train"] == task.splits["train"].take([0, 1, 2, 3, 5, 6, 7, 8, 9])
    assert clean.splits["test"].labels == [0, 0, 1]
    assert clean.provenance["rows"] == {
        "dropped": {},
        "corrupt": {"train": 1, "validation": 0, "test": 1},
        "used": {"train": 9, "validation": 1, "test": 3},
    }
    assert clean.provenance["fingerprints"] == {name: clean.fingerprint(name) for name in clean.splits}
    assert task.provenance == {"rows": {"dropped": {}}}
    assert clean.images is task.images


def test_more_corrupt_images_than_allowed_are_refused():
    task = task_of([png(1), b"x", b"y", png(2)], [png(3)], [png(4)])
    with pytest.raises(UserError) as raised:
        without_corrupt(task, 0.49)
    assert raised.value.key == "task pets, train"
    assert "2 of 4 (50.0%)" in raised.value.found
    assert key_of(b"x") in raised.value.found
    assert raised.value.expected == "at most 49.0%"
    assert "tasks.corrupt" in raised.value.hint
    assert len(without_corrupt(task, 0.5).splits["train"]) == 2


def test_the_share_itself_is_allowed():
    rows = [b"%d" % number for number in range(29)] + [png(shade) for shade in range(71)]
    assert len(without_corrupt(task_of(rows, [png(100)], [png(101)]), 0.29).splits["train"]) == 71


def test_a_split_of_corrupt_images_alone_is_refused():
    with pytest.raises(UserError, match="task pets, validation: the split has no rows"):
        without_corrupt(task_of([png(1)], [b"x"], [png(2)]), 1.0)


def test_each_used_image_is_decoded_once_in_the_order_of_the_source(monkeypatch: pytest.MonkeyPatch):
    data = [png(shade) for shade in range(200)]
    source = Counting({key_of(each): each for each in reversed(data)})
    decoded = []

    def watched(data: bytes) -> Image.Image:
        decoded.append(key_of(data))
        return decode(data)

    monkeypatch.setattr(module, "decode", watched)
    clean = without_corrupt(task_of(data[:100], data[100:120], data[100:130], images=source), 0.0)
    assert source.asked == [key_of(each) for each in reversed(data[:130])]
    assert sorted(decoded) == sorted(source.asked)
    assert len(clean.splits["test"]) == 30


def test_images_that_wait_to_be_decoded_are_few(monkeypatch: pytest.MonkeyPatch):
    """However slow decoding is."""
    data, done, waiting = [png(shade) for shade in range(60)], [], []

    class Images(dict):
        def __getitem__(self, key: str) -> bytes:
            waiting.append(len(waiting) - len(done))
            return super().__getitem__(key)

    def slow(data: bytes):
        time.sleep(0.001)
        done.append(data)

    monkeypatch.setattr(module, "decode", slow)
    monkeypatch.setattr(module, "processors", lambda: 2)
    without_corrupt(task_of(data[:58], data[58:59], data[59:], images=Images(task_of(data, [], []).images)), 0.0)
    assert len(done) == 60
    assert max(waiting) <= 2 * module.AHEAD


def test_running_out_of_memory_is_not_a_corrupt_image(monkeypatch: pytest.MonkeyPatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        without_corrupt(task_of([png(1)], [png(2)], [png(3)]), 1.0)


def test_prepare_hands_the_images_on():
    data = [png(shade) for shade in range(20)]
    rows = Split([(key_of(each),) for each in [*data, data[0]]], [number % 2 for number in range(20)] + [0])
    images = {key_of(each): each for each in data}
    raw = RawTask("pets", ("cat", "dog"), None, "accuracy", 1, {"train": rows}, {"splits": {"train": "made"}}, images)
    task = prepare(raw, config.Rows(), None, 0)
    assert task.images is images
    assert task.provenance["rows"]["dropped"]["train"] == {"two labels": 0, "repeated": 1, "in another split": 0}
