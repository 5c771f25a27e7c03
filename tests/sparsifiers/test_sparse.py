from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from twin_merging.sparsifiers import sparse as module
from twin_merging.sparsifiers.sparse import Sparse, dense, pack, stored_bytes

SHAPES = [(5, 7), (1, 1), (3, 2, 4), (8, 8), (0, 4), (1000, 3)]


def random_mask(shape: tuple[int, ...], share: float, seed: int = 0, experts: int = 3) -> torch.Tensor:
    return torch.rand(experts, *shape, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_unpacked_is_what_the_mask_kept(shape, share, dtype):
    deltas, mask = torch.randn(3, *shape).to(dtype), random_mask(shape, share)
    packed = pack(deltas, mask)
    assert torch.equal(dense(packed), torch.where(mask, deltas, 0))
    assert packed.counts.tolist() == mask.flatten(1).sum(1).tolist()


def test_experts_may_keep_different_numbers_of_numbers():
    deltas = torch.arange(1.0, 9.0).view(2, 2, 2)
    mask = torch.tensor([[[True, False], [True, True]], [[False, False], [False, False]]])
    packed = pack(deltas, mask)
    assert packed.counts.tolist() == [3, 0]
    assert packed.values.tolist() == [1, 3, 4]
    assert torch.equal(dense(packed), deltas * mask)


def test_the_smaller_of_bits_and_indices_is_stored():
    assert pack(torch.randn(2, 64, 64), random_mask((64, 64), 0.01, experts=2)).positions.dtype == torch.int32
    assert pack(torch.randn(2, 64, 64), random_mask((64, 64), 0.1, experts=2)).positions.dtype == torch.uint8


def test_a_tensor_too_long_for_its_indices_has_bits(monkeypatch):
    monkeypatch.setattr(module, "LARGEST_INDEX", 4095)
    deltas, mask = torch.randn(1, 64, 65), random_mask((64, 65), 0.001, experts=1)
    packed = pack(deltas, mask)
    assert packed.positions.dtype == torch.uint8
    assert torch.equal(dense(packed), torch.where(mask, deltas, 0))
    assert sum(part.nbytes for part in packed) == stored_bytes(64 * 65, packed.counts.tolist(), 2)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(0, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 1000))
def test_bytes_are_those_of_the_formula(experts, m, n, share, seed):
    packed = pack(torch.randn(experts, m, n), random_mask((m, n), share, seed, experts))
    assert sum(part.nbytes for part in packed) == stored_bytes(m * n, packed.counts.tolist(), 2)


def test_a_file_is_as_small_as_the_formula_and_reads_back(tmp_path):
    deltas, mask = torch.randn(3, 300, 200), random_mask((300, 200), 0.05)
    packed = pack(deltas, mask)
    save_file(packed._asdict(), tmp_path / "file.safetensors")
    counts = packed.counts.tolist()
    assert (tmp_path / "file.safetensors").stat().st_size == pytest.approx(stored_bytes(60_000, counts, 2), rel=0.01)
    read = load_file(tmp_path / "file.safetensors")
    assert torch.equal(dense(Sparse(**read)), torch.where(mask, deltas, 0))
