"""Arrays in gzip files, idx and pickles: whole, damaged and malicious ones."""

from __future__ import annotations

import builtins
import gzip
import os
import pickle
import random
import struct

import numpy as np
import pytest

from twin_merging.errors import UserError
from twin_merging.tasks import image_arrays
from twin_merging.tasks.image_arrays import gunzip, read_idx, read_pickled

PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=4)


@pytest.mark.parametrize("array", [PIXELS, np.array([3, -1, 1 << 40]), np.zeros((0, 2), np.uint8)])
def test_an_array_comes_back_from_a_pickle(array: np.ndarray):
    found = read_pickled(pickled(array), "x")
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_a_pickle_of_an_older_numpy_is_read():
    new, old = b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray"
    content = pickled(PIXELS)
    assert content.count(new) == 1
    start = content.index(b"\x95") + 1
    (length,) = struct.unpack("<Q", content[start : start + 8])
    content = content[:start] + struct.pack("<Q", length - 1) + content[start + 8 :].replace(new, old)
    np.testing.assert_array_equal(read_pickled(content, "x"), PIXELS)


class Runs:
    """A pickle that calls whatever it likes when it is read."""

    def __init__(self, *call: object):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def by_name(module: str, name: str, *more: bytes) -> bytes:
    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode()

    return b"\x80\x04" + text(module) + text(name) + b"\x93" + b"".join(more) + b"."


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pickled(Runs(os.system, "touch {file}")), "posix.system|operation"),
        (pickled(Runs(builtins.eval, "open('{file}', 'w')")), "builtins.eval|operation"),
        (pickle.dumps(Runs(os.mkdir, "{file}"), protocol=0), "operation"),
        (pickle.dumps(Runs(os.mkdir, "{file}"), protocol=2), "operation"),
        (by_name("os", "mkdir", b"\x8c\x06", b"{file}", b"\x85R"), "os.mkdir"),
        (by_name("numpy.core.multiarray", "scalar"), "no part of an array"),
        (by_name("numpy", "load"), "no part of an array"),
        (by_name("numpy.core.multiarray", "_reconstruct.__globals__"), "no part of an array"),
        (by_name("numpy", "ndarray"), "pickle of one array"),
        (by_name("numpy", "dtype"), "pickle of one array"),
        (by_name("numpy", "ndarray", b")\x81"), "operation"),
    ],
)
def test_a_pickle_that_does_more_is_refused_and_does_nothing(content: bytes, says: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says) as raised:
        read_pickled(content, "x.gz")
    assert raised.value.key == "x.gz"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "value",
    [
        np.array([[], {}], object), np.array(["a"]), np.array([b"a"]), np.arange(3.0), np.zeros(2, ">i8"), np.zeros(2, "i4"),
        np.zeros(2, "M8[s]"), np.zeros(2, [("a", "u1")]), np.asfortranarray(np.zeros((2, 3), np.uint8)), np.dtype("u1"),
        {"a": PIXELS}, [PIXELS], (PIXELS, PIXELS), np.uint8(3), b"bytes", 7, None,
    ],
)  # fmt: skip
def test_a_pickle_of_something_else_is_refused(value: object):
    with pytest.raises(UserError, match="a pickle of one array"):
        read_pickled(pickled(value), "x")


def test_a_shape_that_the_bytes_do_not_have_is_refused():
    content = pickled(PIXELS)
    assert content.count(b"K\x02K\x03K\x04\x87") == 1
    with pytest.raises(UserError, match="reshape"):
        read_pickled(content.replace(b"K\x02K\x03K\x04\x87", b"K\x02K\x03K\x05\x87"), "x")


def test_a_pickle_that_goes_on_and_on_is_refused():
    with pytest.raises(UserError, match="operation"):
        read_pickled(b"\x80\x04" + b"N" * 300 + b".", "x")


def test_a_damaged_pickle_raises_nothing_else():
    whole, chance = pickled(PIXELS), random.Random(0)
    for end in range(len(whole)):
        with pytest.raises(UserError):
            read_pickled(whole[:end], "x")
    refused = 0
    for _ in range(1000):
        content = bytearray(whole)
        content[chance.randrange(len(content))] = chance.randrange(256)
        try:
            read_pickled(bytes(content), "x")
        except UserError:
            refused += 1
    assert refused > 300


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", n) for n in array.shape) + array.tobytes()


@pytest.mark.parametrize("array", [PIXELS, PIXELS[0], PIXELS[0, 0], PIXELS[:0]])
def test_an_idx_array_comes_back(array: np.ndarray):
    np.testing.assert_array_equal(read_idx(idx(array), "x"), array)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0\0\x08", bytes([0, 0, 13, 1]) + struct.pack(">If", 1, 0.5), idx(PIXELS)[:-1], idx(PIXELS) + b"x",
        bytes([0, 0, 8, 0]), bytes([0, 0, 8, 0, 1]), bytes([0, 0, 8, 255]), b"\0\0\x08\x03\xff\xff\xff\xff" * 4, b"\1" + idx(PIXELS)[1:],
        idx(PIXELS[None]), idx(PIXELS)[:9],
    ],
)  # fmt: skip
def test_what_is_no_idx_is_refused(content: bytes):
    with pytest.raises(UserError, match="damaged") as raised:
        read_idx(content, "x.gz")
    assert raised.value.key == "x.gz"


def test_gunzip_stops_at_its_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(image_arrays, "MOST_BYTES", 1000)
    assert gunzip(gzip.compress(bytes(1000)), "x") == bytes(1000)
    with pytest.raises(UserError, match="at most 1000 bytes"):
        gunzip(gzip.compress(bytes(1001)), "x")


def test_what_is_no_gzip_is_refused():
    whole = gzip.compress(bytes(range(256)))
    for content in (b"plain", whole[:-9], whole[:20], whole[:12] + b"\xff\xff" + whole[14:], whole[:-5] + b"xxxxx"):
        with pytest.raises(UserError, match="gzip"):
            gunzip(content, "x")
