"""ONNX files by hand, whole and damaged."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from wire_format import inner, integer, model, node, tensor, varint

from twin_merging import onnx_weights
from twin_merging.errors import UserError
from twin_merging.onnx_weights import Node, read_graph

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def read(tmp_path: Path):
    def get(content: bytes):
        (tmp_path / "model.onnx").write_bytes(content)
        return read_graph(tmp_path / "model.onnx")

    return get


def test_weights_and_nodes_are_read(read):
    other = inner(5, integer(2, 1) + inner(8, "scalar") + inner(9, np.float32(7).tobytes()))
    skipped = varint(3 << 3 | 5) + b"four" + varint(4 << 3 | 1) + b"eight by" + integer(99, 1 << 63)
    graph = read(
        model(tensor("a", VALUES), skipped, tensor("ä", VALUES.T, packed=True), other, node("Add", ["a", ""], "c"))
    )
    assert list(graph.weights) == ["a", "ä", "scalar"]
    np.testing.assert_array_equal(graph.weights["a"], VALUES)
    np.testing.assert_array_equal(graph.weights["ä"], VALUES.T)
    assert graph.weights["scalar"] == 7
    assert graph.nodes == [Node("", "Add", ("a", ""), ("c",))]


def raw(shape: list[int], data: bytes, *more: bytes, kind: int = 1) -> bytes:
    return model(inner(5, b"".join(integer(1, n) for n in shape) + integer(2, kind) + inner(9, data) + b"".join(more)))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 graphs"),
        (model() + model(), "2 graphs"),
        (b"GGUF" + bytes(100), "no ONNX model"),
        (bytes(8), "without a number"),
        (integer(7, 5), "number in place of bytes"),
        (varint(7 << 3 | 3), "wire type 3"),
        (varint(7 << 3 | 2) + varint(1 << 62) + b"x", "where 1 are left"),
        (varint(7 << 3 | 2) + b"\x80" * 5, "cut off"),
        (b"\xff" * 11 + b"\1", "ten bytes"),
        (raw([2, 3], bytes(20)), "20 bytes"),
        (raw([2, 3], bytes(28)), "28 bytes"),
        (raw([0, 1 << 60], b""), "0 bytes"),
        (raw([1 << 40, 1 << 40], bytes(4)), "4 bytes"),
        (raw([1] * 9, bytes(4)), "4 bytes"),
        (raw([(1 << 64) - 1, (1 << 64) - 1], bytes(4)), "4 bytes"),
        (raw([1], bytes(8), kind=7), "not float32"),
        (raw([1], bytes(4), integer(14, 1)), "inside the file"),
        (raw([1], bytes(4), inner(2, b"x")), "place of a number"),
        (raw([1], bytes(4), inner(8, b"\xff\xfe")), "utf-8"),
        (model(tensor("a", VALUES), tensor("a", VALUES)), "two tensors"),
    ],
)
def test_what_is_damaged_is_refused(read, tmp_path: Path, content: bytes, says: str):
    with pytest.raises(UserError, match=says) as raised:
        read(content)
    assert raised.value.key == str(tmp_path / "model.onnx")


def test_a_file_cut_anywhere_is_refused(read):
    content = model(tensor("a", VALUES), node("Add", ["a", "b"], "c"))
    for end in range(len(content)):
        with pytest.raises(UserError):
            read(content[:end])


def test_random_damage_raises_nothing_else(read):
    whole = model(tensor("a", VALUES), tensor("b", VALUES, packed=True), node("Add", ["a", "b"], "c"))
    chance = random.Random(0)
    refused = 0
    for _ in range(500):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        try:
            read(bytes(content))
        except UserError:
            refused += 1
    assert refused > 100


def test_a_file_that_is_too_large_is_not_read(read, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnx_weights, "MOST_BYTES", 20)
    with pytest.raises(UserError, match="too large"):
        read(model(tensor("a", VALUES)))
