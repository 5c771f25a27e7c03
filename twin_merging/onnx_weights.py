"""The weights and the nodes of an ONNX file, read from the protobuf wire format: no code of the file is run or needed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from twin_merging.errors import UserError

MOST_BYTES = 1 << 31  # no protobuf message may be larger
MOST_AXES = 8
GRAPH = 7  # field of ModelProto
NODE, INITIALIZER = 1, 5  # of GraphProto
INPUT, OUTPUT, NODE_NAME, OPERATION = 1, 2, 3, 4  # of NodeProto
DIMS, DATA_TYPE, NAME, RAW_DATA, LOCATION = 1, 2, 8, 9, 14  # of TensorProto
FLOAT32 = 1
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class Node:
    """An operation of the graph, with the names of the values that it takes and gives."""

    name: str
    operation: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """``weights``: the initializers by name, as read-only float32 arrays; ``nodes``: in the file's order."""

    weights: dict[str, np.ndarray] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)


def read_graph(path: Path) -> Graph:
    """Read a model whose weights are float32 and lie in the file itself. Attributes of nodes are left out.

    Raises:
        UserError: if the file is too large, cut off, not of this form, or a tensor's bytes are not those of its shape.
    """
    if path.stat().st_size > MOST_BYTES:
        raise UserError("too large for an ONNX model", key=str(path), expected=f"at most {MOST_BYTES} bytes")
    try:
        graphs = [_message(value) for number, value in _fields(memoryview(path.read_bytes())) if number == GRAPH]
        if len(graphs) != 1:
            raise ValueError(f"{len(graphs)} graphs in place of one")
        return _graph(graphs[0])
    except ValueError as error:  # of which UnicodeDecodeError is one
        raise UserError(f"no ONNX model that can be read ({error})", key=str(path)) from error


def _graph(message: memoryview) -> Graph:
    graph = Graph()
    for number, value in _fields(message):
        if number == NODE:
            graph.nodes.append(_node(_message(value)))
        elif number == INITIALIZER:
            name, weight = _tensor(_message(value))
            if name in graph.weights:
                raise ValueError(f"two tensors are called {name!r}")
            graph.weights[name] = weight
    return graph


def _node(message: memoryview) -> Node:
    texts: dict[int, list[str]] = {INPUT: [], OUTPUT: [], NODE_NAME: [""], OPERATION: [""]}
    for number, value in _fields(message):
        if number in texts:
            texts[number].append(_text(value))
    return Node(texts[NODE_NAME][-1], texts[OPERATION][-1], tuple(texts[INPUT]), tuple(texts[OUTPUT]))


def _tensor(message: memoryview) -> tuple[str, np.ndarray]:
    name, shape, data_type, location, raw = "", [], 0, 0, memoryview(b"")
    for number, value in _fields(message):
        if number == DIMS:
            shape += [value] if isinstance(value, int) else list(_packed(value))
        elif number == DATA_TYPE:
            data_type = _number(value)
        elif number == NAME:
            name = _text(value)
        elif number == RAW_DATA:
            raw = _message(value)
        elif number == LOCATION:
            location = _number(value)
    if data_type != FLOAT32 or location != 0:
        raise ValueError(f"tensor {name!r} is not float32 inside the file")
    if len(shape) > MOST_AXES or 0 in shape or 4 * math.prod(shape) != len(raw):
        raise ValueError(f"tensor {name!r} of shape {shape[:MOST_AXES]} has {len(raw)} bytes")
    return name, np.frombuffer(raw, "<f4").reshape(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Each field's number with its value: an integer, or the bytes of text, numbers or an inner message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ValueError(f"a field without a number at byte {at}")
        if wire == VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == BYTES:
            length, at = _varint(message, at)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"unknown wire type {wire} at byte {at}")
        if length > len(message) - at:
            raise ValueError(f"a field of {length} bytes where {len(message) - at} are left")
        yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """An unsigned integer in groups of seven bits, the lowest first, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("cut off inside a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _packed(value: memoryview) -> Iterator[int]:
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield number


def _number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes in place of a number")
    return value


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number in place of bytes")
    return value


def _text(value: int | memoryview) -> str:
    return str(_message(value), "utf-8")
