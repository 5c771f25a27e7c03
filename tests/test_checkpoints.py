from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from twin_merging import checkpoints
from twin_merging.checkpoints import Checkpoint
from twin_merging.errors import UserError


def state() -> dict[str, torch.Tensor]:
    return {
        "bert.a.weight": torch.arange(6.0).view(2, 3),
        "bert.a.bias": torch.ones(2, dtype=torch.bfloat16),
        "bert.ids": torch.arange(3),
        "head.weight": torch.full((2, 2), 0.5),
    }


def sharded(folder: Path) -> Path:
    """The same tensors in two files and an index."""
    tensors = state()
    names = list(tensors)
    files = {"one.safetensors": names[:2], "two.safetensors": names[2:]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in files.items() for name in part}
    (folder / checkpoints.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_what_is_saved_is_read_back(tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoints.save(state(), path)
    for source in (path, tmp_path):
        found = Checkpoint(source)
        assert set(found) == set(state())
        assert len(found) == 4
        for name, tensor in state().items():
            assert torch.equal(found[name], tensor)
            assert found[name].dtype == tensor.dtype
            assert found.shape(name) == tuple(tensor.shape)


def test_shards_are_one_checkpoint(tmp_path):
    found = Checkpoint(sharded(tmp_path))
    assert set(found) == set(state())
    for name, tensor in state().items():
        assert torch.equal(found[name], tensor)


def test_a_prefix_chooses_and_is_cut_off(tmp_path):
    checkpoints.save(state(), tmp_path / "model.safetensors")
    found = Checkpoint(tmp_path, "bert.")
    assert set(found) == {"a.weight", "a.bias", "ids"}
    assert torch.equal(found["a.weight"], state()["bert.a.weight"])
    assert found.shape("a.weight") == (2, 3)
    with pytest.raises(KeyError):
        found["head.weight"]


def test_views_and_gradients_can_be_saved(tmp_path):
    weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    checkpoints.save({"t": weight.T}, tmp_path / "t.safetensors")
    assert torch.equal(Checkpoint(tmp_path / "t.safetensors")["t"], weight.detach().T)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoints.save(state(), path)
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        checkpoints.save({"x": "no tensor"}, path)
    shared = torch.zeros(3)
    with pytest.raises(RuntimeError):  # two names of one memory, which safetensors refuses
        checkpoints.save({"x": shared, "y": shared}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_save_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    def break_off(tensors, path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", break_off)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(state(), tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(UserError, match="no safetensors checkpoint") as caught:
        Checkpoint(tmp_path)
    assert caught.value.key == str(tmp_path)
    assert "model.safetensors" in caught.value.expected


def test_a_missing_shard_is_named(tmp_path):
    sharded(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(UserError, match="a shard is missing") as caught:
        Checkpoint(tmp_path)
    assert caught.value.key == str(tmp_path / "two.safetensors")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "one.sa'])
def test_a_damaged_index_is_named(tmp_path, content):
    (sharded(tmp_path) / checkpoints.INDEX).write_text(content)
    with pytest.raises(UserError, match="a damaged index") as caught:
        Checkpoint(tmp_path)
    assert caught.value.key == str(tmp_path / checkpoints.INDEX)


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "model.safetensors"
    checkpoints.save(state(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="a damaged safetensors file") as caught:
        Checkpoint(path)
    assert caught.value.key == str(path)


def test_a_file_that_is_no_safetensors_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    torch.save(state(), path)
    with pytest.raises(UserError, match="a damaged safetensors file"):
        Checkpoint(tmp_path)


def test_check_accepts_equal_names_and_shapes():
    checkpoints.check(state(), state(), "expert")


def test_check_names_a_missing_tensor():
    tensors = state()
    del tensors["bert.ids"]
    with pytest.raises(UserError, match="a tensor is missing") as caught:
        checkpoints.check(tensors, state(), "expert cola")
    assert caught.value.key == "expert cola: bert.ids"


def test_check_names_an_unexpected_tensor():
    with pytest.raises(UserError, match="the base does not have") as caught:
        checkpoints.check({**state(), "extra": torch.zeros(1)}, state(), "expert cola")
    assert caught.value.key == "expert cola: extra"


def test_check_names_a_tensor_of_another_shape():
    tensors = {**state(), "bert.a.weight": torch.zeros(3, 2)}
    with pytest.raises(UserError, match="wrong shape") as caught:
        checkpoints.check(tensors, state(), "expert cola")
    assert caught.value.key == "expert cola: bert.a.weight"
    assert caught.value.found == [3, 2]
    assert "[2, 3]" in caught.value.expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_check_counts_what_is_not_finite(value):
    tensors = state()
    tensors["bert.a.bias"][1] = value
    with pytest.raises(UserError, match="NaN or infinity") as caught:
        checkpoints.check(tensors, state(), "expert cola")
    assert caught.value.key == "expert cola: bert.a.bias"
    assert caught.value.found == "1 of 2 entries"
