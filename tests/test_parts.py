"""Parts: a file a parameter, joined into what safetensors itself would have written of all of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file

from twin_merging.parts import Parts

FOUND = {
    "layer.weight": {"layer.weight.U": torch.arange(6.0).view(2, 3), "layer.weight.S": torch.ones(2, dtype=torch.float64)},
    "layer.bias": {"layer.bias": torch.tensor([1, 2, 3], dtype=torch.uint8)},
    "nothing": {},
    "empty": {"empty": torch.empty(0, 4)},
    "half": {"half": torch.randn(7).bfloat16()},
}  # fmt: skip


def test_all_tensors_are_in_one_file_whatever_their_order(tmp_path):
    for place, names in enumerate((list(FOUND), list(FOUND)[::-1])):
        parts = Parts(tmp_path / f"parts{place}")
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda name, parts=parts: parts.add(name, FOUND[name]), names))
        parts.join(tmp_path / f"{place}.safetensors")
        assert not parts.folder.exists()
    found = load_file(tmp_path / "0.safetensors")
    expected = {name: tensor for tensors in FOUND.values() for name, tensor in tensors.items()}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()


def test_none_at_all_is_an_empty_file(tmp_path):
    Parts(tmp_path / "parts").join(tmp_path / "whole.safetensors")
    assert load_file(tmp_path / "whole.safetensors") == {}


def test_what_is_there_is_not_missing(tmp_path):
    Parts(tmp_path / "parts").add("half", FOUND["half"])
    assert Parts(tmp_path / "parts").missing(FOUND) == ["layer.weight", "layer.bias", "nothing", "empty"]


def test_what_breaks_off_leaves_the_parts_and_no_file(tmp_path, monkeypatch):
    parts = Parts(tmp_path / "parts")
    parts.add("half", FOUND["half"])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("twin_merging.parts.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        parts.join(tmp_path / "whole.safetensors")
    assert parts.missing(["half"]) == []
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]


def test_files_are_moved_as_they_are(tmp_path):
    parts = Parts(tmp_path / "parts")
    parts.add("half", FOUND["half"])
    (tmp_path / "there").mkdir()
    parts.move(tmp_path / "there")
    assert torch.equal(load_file(tmp_path / "there/half.safetensors")["half"], FOUND["half"]["half"])
