"""Random dropping of exclusive knowledge (paper figure 6)."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from twin_merging.config import Bernoulli
from twin_merging.merging.method import At, static
from twin_merging.sparsifiers.sparse import Sparse, pack


@static(random=True)
def drop_at_random(deltas: Tensor, options: Bernoulli, at: At) -> Sparse | Tensor:
    """Each number is dropped with chance p = ``drop_rate``; kept ones are divided by 1 − p if ``rescale``.

    What has fewer than two dimensions is kept whole. The draw depends on the seed and the parameter's name alone.

    Args:
        deltas: v_t of one parameter, (T, *shape).
    """
    if deltas.dim() < 3:
        return deltas
    seed = int.from_bytes(hashlib.sha256(f"{at.seed} {at.name}".encode()).digest()[:8], "big", signed=True)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(deltas.shape, generator=generator, dtype=torch.float32) >= options.drop_rate
    return pack(deltas / (1 - options.drop_rate) if options.rescale else deltas, mask.to(deltas.device))
