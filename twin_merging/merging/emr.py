"""EMR-Merging: elect, mask and rescale (Huang et al., 2024)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from twin_merging.checkpoints import check_finite
from twin_merging.merging.stack import Stack, in_parallel

UNIFIED, MASKS, RESCALERS = ".unified", ".masks", "rescalers"


def elect(deltas: Tensor) -> tuple[Tensor, Tensor]:
    """τ = γ ⊙ max_t of |τ_t| where τ_t has the sign γ = sgn Σ τ_t, and M_t = [τ_t ⊙ τ > 0] (EMR-Merging, section 3.2).

    Where the sum is zero, no sign is elected: τ is zero and no mask is set.

    Args:
        deltas: τ_t of some numbers, (T, n).

    Returns:
        τ, (n,), and the masks, (T, n).
    """
    sign = deltas.sum(0, dtype=torch.float64).sign().to(deltas.dtype)
    agreeing = deltas * sign
    return sign * agreeing.amax(0).clamp_min(0), agreeing > 0


def elected(stack: Stack) -> dict[str, Tensor]:
    """What EMR-Merging stores, in one pass over the experts.

    ``NAME.unified`` is τ of a parameter's shape, ``NAME.masks`` all M_t at eight numbers a byte, (T, ⌈n/8⌉), and
    ``rescalers``, (T,), is λ_t = Σ|τ_t| / Σ|M_t ⊙ τ| over all parameters together; 0 for a task that no mask is set for.

    Raises:
        UserError: if a τ_t holds NaN or infinity.
    """
    tasks = len(stack)
    stored: dict[str, Tensor] = {}
    for name in stack.names:
        base = stack.base[name]
        stored[name + UNIFIED] = torch.empty(base.shape, dtype=torch.promote_types(base.dtype, torch.float32))
        stored[name + MASKS] = torch.empty((tasks, -(-base.numel() // 8)), dtype=torch.uint8)

    def by_pieces(name: str, first: int, last: int) -> Tensor:
        sizes = torch.zeros((2, tasks), dtype=torch.float64)
        for start, _, deltas in stack.pieces(name, first, last):
            unified, masks = elect(deltas)
            check_finite(deltas, f"merge_method=emr: {name}")
            packed = _packed(masks)
            stored[name + UNIFIED].view(-1)[start : start + len(unified)] = unified
            stored[name + MASKS][:, start // 8 : start // 8 + packed.shape[1]] = packed
            sizes[0] += deltas.abs().sum(1, dtype=torch.float64)
            sizes[1] += (masks * unified.abs()).sum(1, dtype=torch.float64)
        return sizes

    jobs = list(stack.turns(stack.names))
    found = dict(in_parallel(by_pieces, jobs, "elect by emr", amount=lambda name, first, last: last - first))
    own, masked = sum((found[job] for job in jobs), torch.zeros((2, tasks), dtype=torch.float64))
    stored[RESCALERS] = torch.where(masked > 0, own / masked, 0).float()
    return stored


def task_vectors(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """λ_t M_t ⊙ τ of all tasks by parameter, (T, *shape), from what ``elected`` stores."""
    names = [name.removesuffix(UNIFIED) for name in stored if name.endswith(UNIFIED)]
    return {name: _rebuilt(stored[name + UNIFIED], stored[name + MASKS], stored[RESCALERS]) for name in names}


def _rebuilt(unified: Tensor, packed: Tensor, rescalers: Tensor) -> Tensor:
    masks = torch.from_numpy(np.unpackbits(packed.numpy(), axis=1, count=unified.numel()))
    rescaled = rescalers.to(unified.dtype).unsqueeze(1) * unified.flatten()
    return rescaled.mul_(masks).view(len(rescalers), *unified.shape)


def _packed(masks: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(masks.numpy(), axis=1))
