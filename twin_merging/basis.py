"""The singular vectors of all exclusive knowledge, found once and kept in files, from which every rank is a product away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from threadpoolctl import ThreadpoolController
from torch import Tensor

from twin_merging.checkpoints import Checkpoint, check_finite
from twin_merging.config import Svd
from twin_merging.merging.stack import Stack, in_parallel
from twin_merging.parts import Parts
from twin_merging.sparsifiers.ranks import Matrix, choose_ranks
from twin_merging.sparsifiers.spectrum import Spectrum, spectrum
from twin_merging.sparsifiers.storage import room


def decompose(exclusive: Stack, cap: int | None, solver: str, parts: Parts) -> None:
    """Every matrix's ``spectrum``, a part each: S (T, k) and V (T, min(m, n), k); what is in ``parts`` stays.

    Raises:
        UserError: if a v_t holds NaN or infinity.
    """
    found: dict[str, dict[int, Spectrum]] = {}

    def of_one(name: str, expert: int) -> Spectrum:
        _, deltas = Stack(exclusive.base, [exclusive.experts[expert]], [name]).whole(name)
        check_finite(deltas, f"exclusive knowledge: {name}")
        return spectrum(deltas[0], cap, solver)

    jobs = [(name, expert) for name in parts.missing(matrices(exclusive)) for expert in range(len(exclusive))]
    # several matrices at once leave a core each; torch's threads are told so by in_parallel
    with ThreadpoolController().select(internal_api="openblas").limit(limits=1):
        for (name, expert), mine in in_parallel(of_one, jobs, "decompose", lambda name, _: exclusive.size(name)):
            together = found.setdefault(name, {})
            together[expert] = mine
            if len(together) == len(exclusive):
                S, V = (torch.stack(each) for each in zip(*(together[t] for t in range(len(exclusive))), strict=True))
                parts.add(name, {"S": S, "V": V})
                del found[name]


class Vectors(Mapping[str, Tensor]):
    """V (T, min(m, n), r) of each matrix, read when it is asked for, with the r that the options give it.

    Args:
        folder: with a file a parameter, as ``decompose`` leaves them.
        exclusive: what was decomposed.
    """

    def __init__(self, folder: Path, exclusive: Stack, options: Svd):
        self._paths = {name: folder / f"{name}.safetensors" for name in matrices(exclusive)}
        spectra = {
            name: Matrix(Checkpoint(path)["S"], *exclusive.base[name].shape) for name, path in self._paths.items()
        }
        left = 0 if options.budget is None else room(exclusive, options)
        self._ranks = choose_ranks(spectra, options, left)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._paths[name], framework="pt") as file:
            return file.get_slice("V")[:, :, : self._ranks[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def matrices(exclusive: Stack) -> list[str]:
    """The parameters that are decomposed: those of two dimensions."""
    return [name for name in exclusive.names if exclusive.base[name].dim() == 2]
