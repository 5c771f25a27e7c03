"""Shards written in pieces are the files that safetensors itself would read, whatever the order and the threads."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from twin_merging.checkpoints import INDEX, Checkpoint
from twin_merging.errors import UserError
from twin_merging.mapped import MappedCheckpoint
from twin_merging.safetensors_format import NAMES, Entry
from twin_merging.shards import ShardWriter, split

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "odd": torch.tensor([1, 2, 3], dtype=torch.uint8),  # 3 bytes, which would push the next one out of alignment
        "a": normal(5, 7),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 4),
        "half": normal(11).bfloat16(),
        "truth": torch.tensor([True, False, True]),
        "ids": torch.arange(9),
    }


def entries_of(state: dict[str, Tensor]) -> dict[str, Entry]:
    return {name: Entry(tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}


def pieces_of(state: dict[str, Tensor], size: int) -> list[tuple[str, int, Tensor]]:
    return [
        (name, start, tensor.reshape(-1)[start : start + size])
        for name, tensor in state.items()
        for start in range(0, max(1, tensor.numel()), size)
    ]


def written(state: dict[str, Tensor], folder: Path, max_bytes: int, size: int = 4) -> ShardWriter:
    writer = ShardWriter(folder, entries_of(state), max_bytes)
    for piece in pieces_of(state, size):
        writer.write(*piece)
    writer.finish()
    return writer


def assert_same(found, state: dict[str, Tensor]) -> None:
    assert set(found) == set(state)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor)


def test_one_shard_is_a_file_that_safetensors_reads(tmp_path):
    written(tensors(), tmp_path, 1 << 20)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert_same(load_file(tmp_path / "model.safetensors"), tensors())
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_several_shards_and_their_index(tmp_path):
    writer = written(tensors(), tmp_path, 100)
    assert len(writer.shards) > 2
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(entry.nbytes for entry in entries_of(tensors()).values())
    for file, part in writer.shards.items():
        assert set(load_file(tmp_path / file)) == set(part)
        assert {index["weight_map"][name] for name in part} == {file}
    assert_same(Checkpoint(tmp_path), tensors())
    assert_same(MappedCheckpoint(tmp_path), tensors())


def test_any_order_from_many_threads(tmp_path):
    state = {**tensors(), "large": torch.randn(500, 40)}
    writer = ShardWriter(tmp_path, entries_of(state), 50_000)
    pieces = pieces_of(state, 33)
    random.Random(0).shuffle(pieces)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda piece: writer.write(*piece), pieces))
    writer.finish()
    assert_same(MappedCheckpoint(tmp_path), state)


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)), min_size=1, max_size=6
    ),
    max_bytes=st.integers(1, 300),
    size=st.integers(1, 9),
)
def test_any_tensors_are_read_back(tmp_path_factory, shapes, max_bytes, size):
    generator = torch.Generator().manual_seed(0)
    state = {
        f"t{number}": torch.randint(0, 2, shape, generator=generator).to(dtype)
        for number, (dtype, shape) in enumerate(shapes)
    }
    folder = tmp_path_factory.mktemp("shards")
    written(state, folder, max_bytes, size)
    assert_same(Checkpoint(folder), state)
    assert_same(MappedCheckpoint(folder), state)


def test_shards_keep_the_order_and_the_limit():
    entries = {name: Entry(torch.float32, (size,)) for name, size in {"a": 3, "b": 3, "c": 9, "d": 1, "e": 2}.items()}
    shards = split(entries, 24)
    assert [list(shard) for shard in shards] == [["a", "b"], ["c"], ["d", "e"]]  # c alone is larger than a shard
    assert [list(shard) for shard in split(entries, 10**9)] == [list(entries)]


def test_a_shard_has_its_name_only_when_all_its_numbers_are_in(tmp_path):
    state = {"a": torch.arange(6.0), "b": torch.arange(4.0)}
    writer = ShardWriter(tmp_path, entries_of(state), 24)
    writer.write("a", 3, state["a"][3:])
    assert [path.name for path in tmp_path.iterdir()] == [".model-00001-of-00002.safetensors.unfinished"]
    writer.write("a", 0, state["a"][:3])
    assert [path.name for path in tmp_path.iterdir()] == ["model-00001-of-00002.safetensors"]
    assert torch.equal(load_file(tmp_path / "model-00001-of-00002.safetensors")["a"], state["a"])
    with pytest.raises(AssertionError, match="missing"):
        writer.finish()


def test_a_second_writer_goes_on_with_the_shards_that_are_missing(tmp_path):
    state = {"a": torch.arange(6.0), "b": torch.arange(4.0), "c": torch.ones(6)}
    first = ShardWriter(tmp_path, entries_of(state), 24)
    first.write("a", 0, state["a"])
    first.write("c", 0, state["c"][:5])  # and is killed
    before = (tmp_path / "model-00001-of-00003.safetensors").stat().st_mtime_ns
    second = ShardWriter(tmp_path, entries_of(state), 24)
    assert second.pending == ["b", "c"]
    for name in second.pending:
        second.write(name, 0, state[name])
    second.finish()
    assert_same(Checkpoint(tmp_path), state)
    assert (tmp_path / "model-00001-of-00003.safetensors").stat().st_mtime_ns == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("start", "piece"), [(4, torch.ones(3)), (-1, torch.ones(2)), (0, torch.ones(2).half())])
def test_a_piece_that_does_not_belong_is_refused(tmp_path, start, piece):
    writer = ShardWriter(tmp_path, {"a": Entry(torch.float32, (6,))}, 100)
    with pytest.raises(AssertionError):
        writer.write("a", start, piece)


def test_every_dtype_that_safetensors_writes_is_read(tmp_path):
    state = {name: torch.zeros(3, dtype=dtype) for dtype, name in NAMES.items()}
    save_file(state, tmp_path / "model.safetensors")
    found = MappedCheckpoint(tmp_path)
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in state.items()
    }


def test_a_tensor_out_of_alignment_is_read(tmp_path):
    header = json.dumps({
        "odd": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "w": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }).encode()  # fmt: skip
    numbers = torch.tensor([1.5, -2.0]).view(torch.uint8).numpy().tobytes()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"abc" + numbers)
    assert torch.equal(MappedCheckpoint(tmp_path)["w"], torch.tensor([1.5, -2.0]))


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_truncated_file_is_named_before_a_number_is_read(tmp_path, keep):
    path = tmp_path / "model.safetensors"
    save_file(tensors(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="a damaged safetensors file") as caught:
        MappedCheckpoint(tmp_path)
    assert caught.value.key == str(path)


@pytest.mark.parametrize(
    "header",
    [
        "[]", "{", '{"a": 3}', '{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', '{"a": {"dtype": "F32", "shape": ["x"]}}',
    ],
)  # fmt: skip
def test_a_header_that_describes_something_else_is_refused(tmp_path, header):
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(4))
    with pytest.raises(UserError, match="a damaged safetensors file"):
        MappedCheckpoint(path)


def test_the_identity_is_of_sizes_and_headers(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    first = MappedCheckpoint(tmp_path).identity()
    assert first["model.safetensors"]["bytes"] == (tmp_path / "model.safetensors").stat().st_size
    save_file({"b": torch.ones(3)}, tmp_path / "model.safetensors")
    assert MappedCheckpoint(tmp_path).identity() != first
