"""python benchmarks/torch_loop.py METHOD OUT BASE EXPERT...: the merge that one writes in an afternoon, to compare with.

All checkpoints are loaded, and each parameter is merged by plain torch operations.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

DENSITY, SCALING = 0.2, 0.3


def trimmed(deltas: Tensor, thresholds: Tensor) -> Tensor:
    """Entries of (T, n) that reach their expert's threshold."""
    return deltas * (deltas.abs() >= thresholds[:, None])


def thresholds(flat: Tensor) -> Tensor:
    """The magnitude that the largest ``DENSITY`` of each row's entries reach."""
    kept = max(1, int(DENSITY * flat.shape[1]))
    return torch.stack([row.abs().kthvalue(len(row) - kept + 1).values for row in flat])


def ties(base: Tensor, deltas: Tensor, limits: Tensor) -> Tensor:
    """Elect signs, then average what agrees."""
    kept = trimmed(deltas.flatten(1), limits)
    agreeing = kept * (kept.sign() == kept.sum(0).sign())
    return base + (agreeing.sum(0) / agreeing.ne(0).sum(0).clamp(min=1)).view_as(base)


def merge(method: str, base: dict[str, Tensor], experts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Every parameter, one after the other."""
    stacked = {name: torch.stack([expert[name] for expert in experts]) for name in base}
    if method == "average":
        return {name: tensors.mean(0) for name, tensors in stacked.items()}
    deltas = {name: tensors - base[name] for name, tensors in stacked.items()}
    if method == "task_arithmetic":
        return {name: base[name] + SCALING * deltas[name].sum(0) for name in base}
    if method == "ties_per_tensor":
        return {name: ties(base[name], deltas[name], thresholds(deltas[name].flatten(1))) for name in base}
    limits = thresholds(torch.cat([delta.flatten(1) for delta in deltas.values()], 1))
    return {name: ties(base[name], deltas[name], limits) for name in base}


if __name__ == "__main__":
    method, out, base, *experts = sys.argv[1:]
    Path(out).mkdir(parents=True)
    states = [load_file(Path(folder) / "model.safetensors") for folder in (base, *experts)]
    save_file(merge(method, states[0], states[1:]), Path(out) / "model.safetensors", {"format": "pt"})
