"""Storage for tensors of which few numbers are left: where they are, in bits or indices, and the numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LARGEST_INDEX = 2**31 - 1


class Sparse(NamedTuple):
    """T experts' numbers of one parameter, each with its own number of them.

    positions: which of the N numbers of an expert are kept, whichever is smaller: a bitmap, uint8 (T, ⌈N/8⌉), first
        number in the highest bit; or rising indices, int32 (K), one expert after the other.
    values: the kept numbers in the same order, (K).
    counts: how many each expert keeps, int64 (T), K together.
    shape: of the parameter, int64.
    """

    positions: Tensor
    values: Tensor
    counts: Tensor
    shape: Tensor


def pack(deltas: Tensor, mask: Tensor) -> Sparse:
    """Keep the numbers of (T, *shape) where the mask is true."""
    flat, mask = deltas.reshape(len(deltas), -1), mask.reshape(len(deltas), -1)
    counts, size = mask.sum(1), flat.shape[1]
    bits = len(flat) * ((size + 7) // 8)
    if size > LARGEST_INDEX or bits <= 4 * int(counts.sum()):
        positions = torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=1))
    else:
        positions = mask.nonzero()[:, 1].to(torch.int32)
    return Sparse(positions, flat[mask], counts, torch.tensor(deltas.shape[1:], dtype=torch.int64))


def dense(sparse: Sparse) -> Tensor:
    """(T, *shape), with zeros where nothing was kept."""
    positions, values, counts, shape = sparse
    size = int(shape.prod())
    flat = values.new_zeros(len(counts), size)
    if positions.dtype == torch.uint8:
        mask = np.unpackbits(positions.cpu().numpy(), axis=1, count=size).astype(bool)
        flat[torch.from_numpy(mask).to(flat.device)] = values
    else:
        experts = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        flat[experts, positions.long()] = values
    return flat.view(len(counts), *shape.tolist())


def stored_bytes(size: int, counts: list[int], dimensions: int, number: int = 4) -> int:
    """Bytes of a ``Sparse`` without the file's header: of N numbers an expert, of which ``counts`` are kept.

    min(T·⌈N/8⌉, 4 K) for the positions, ``number``·K for the values, 8·T for the counts, 8 a dimension.
    """
    bits, kept = len(counts) * ((size + 7) // 8), sum(counts)
    positions = bits if size > LARGEST_INDEX else min(bits, 4 * kept)
    return positions + number * kept + 8 * len(counts) + 8 * dimensions
