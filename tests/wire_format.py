"""ONNX files written by hand: the protobuf wire format, and an export of a small DINOv2 as PyTorch writes it."""

from __future__ import annotations

import numpy as np
import torch
from transformers import Dinov2Config, Dinov2Model

TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "image_size": 42, "patch_size": 14}
LINEAR = ("query", "key", "value", "dense", "fc1", "fc2")


def varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def integer(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def inner(number: int, content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor(name: str, value: np.ndarray, packed: bool = False) -> bytes:
    shape = inner(1, b"".join(map(varint, value.shape))) if packed else b"".join(integer(1, n) for n in value.shape)
    return inner(5, shape + integer(2, 1) + inner(8, name) + inner(9, value.astype("<f4").tobytes()))


def node(operation: str, inputs: list[str], output: str) -> bytes:
    attribute = inner(5, inner(1, "axis") + integer(3, 1))
    return inner(1, b"".join(inner(1, name) for name in inputs) + inner(2, output) + inner(4, operation) + attribute)


def model(*parts: bytes) -> bytes:
    return integer(1, 7) + inner(2, "pytorch") + inner(7, b"".join(parts))


def tiny_model(folder) -> Dinov2Model:
    torch.manual_seed(0)
    net = Dinov2Model(Dinov2Config(**TINY, use_mask_token=False))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    net.save_pretrained(folder)
    return net.eval()


def export(weights: dict[str, np.ndarray]) -> list[bytes]:
    """The parts of a graph: linear weights are transposed and nameless, as are the two parts of position embeddings."""
    parts = []
    for i, (name, value) in enumerate(weights.items()):
        if name == "embeddings.position_embeddings":
            parts += [tensor("onnx::a", value[:, :1]), node("Concat", ["onnx::a", "x"], "y")]
            parts += [tensor("onnx::b", value[:, 1:]), node("Reshape", ["onnx::b", "shape"], "x")]
        elif name.endswith(".weight") and name.split(".")[-2] in LINEAR:
            parts += [tensor(f"onnx::{i}", value.T), node("MatMul", [f"v{i}", f"onnx::{i}"], f"w{i}")]
            parts.append(node("Add", ["backbone." + name.replace("weight", "bias"), f"w{i}"], f"u{i}"))
        else:
            parts.append(tensor("backbone." + name, value, packed=i % 2 == 0))
    return [*parts, tensor("decoder.final.weight", np.ones((1, 4))), node("MatMul", ["w0", "w1"], "scores")]
