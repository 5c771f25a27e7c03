"""Exclusive knowledge as stages: matrices are decomposed once for all ranks, then every parameter is compressed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from threadpoolctl import ThreadpoolController
from torch import Tensor

from twin_merging import checkpoints, parameters
from twin_merging.checkpoints import Checkpoint
from twin_merging.config import sparsifiers
from twin_merging.merging.apply import modularize
from twin_merging.merging.method import kind_of
from twin_merging.merging.stack import Stack, in_parallel
from twin_merging.merging.twin import exclusive_knowledge
from twin_merging.pipeline.artefacts import base_weights, expert_weights
from twin_merging.pipeline.stages import ENCODER, Stages, shared_rank
from twin_merging.sparsifiers.ranks import Matrix, choose_ranks
from twin_merging.sparsifiers.spectrum import Spectrum, spectrum
from twin_merging.sparsifiers.storage import room
from twin_merging.sparsifiers.stored import tensors_of


def basis(stages: Stages, folder: Path, scratch: Path) -> None:
    """Every matrix's ``spectrum``, a file a parameter: S (T, k) and V (T, min(m, n), k)."""
    exclusive, options = _exclusive(stages), stages.run.sparsifier
    found: dict[str, dict[int, Spectrum]] = {}

    def decompose(name: str, expert: int) -> Spectrum:
        _, deltas = Stack(exclusive.base, [exclusive.experts[expert]], [name]).whole(name)
        checkpoints.check_finite(deltas, f"exclusive knowledge: {name}")
        return spectrum(deltas[0], shared_rank(options), options.solver)

    jobs = [(name, expert) for name in _matrices(exclusive) for expert in range(len(exclusive))]
    # several matrices at once leave a core each; torch's threads are told so by in_parallel
    with ThreadpoolController().select(internal_api="openblas").limit(limits=1):
        for (name, expert), mine in in_parallel(decompose, jobs, "decompose", lambda name, _: exclusive.size(name)):
            together = found.setdefault(name, {})
            together[expert] = mine
            if len(together) == len(exclusive):
                S, V = (torch.stack(parts) for parts in zip(*(together[t] for t in range(len(exclusive))), strict=True))
                checkpoints.save({"S": S, "V": V}, folder / f"{name}.safetensors")
                del found[name]


def exclusive(stages: Stages, folder: Path, scratch: Path) -> None:
    """Compressed v_t of all tasks, as ``tensors_of`` names it."""
    knowledge, options = _exclusive(stages), stages.run.sparsifier
    sparsify = sparsifiers[options.name].load()
    statistics = _Vectors(stages, knowledge) if kind_of(sparsify).needs == "spectra" else None
    tensors: dict[str, Tensor] = {}
    for name, kept in modularize(sparsify, options, knowledge, seed=stages.run.seed, statistics=statistics):
        tensors |= tensors_of(name, kept)
    checkpoints.save(tensors, folder / "exclusive.safetensors")


class _Vectors(Mapping[str, Tensor]):
    """V (T, min(m, n), r) of each matrix, read when it is asked for, with the r that the options give it."""

    def __init__(self, stages: Stages, exclusive: Stack):
        options, artefact = stages.run.sparsifier, stages.get(stages.basis)
        self._paths = {name: artefact.path(f"{name}.safetensors") for name in _matrices(exclusive)}
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


def check_budget(stages: Stages) -> None:
    """Raise a UserError if ``sparsifier.budget`` is too small for what is kept whole."""
    if getattr(stages.run.sparsifier, "budget", None) is not None:
        base = base_weights(stages)
        room(_stack(stages, base, [base] * len(stages.names)), stages.run.sparsifier)


def _exclusive(stages: Stages) -> Stack:
    return _stack(stages, Checkpoint(stages.get(stages.shared).path(ENCODER)), expert_weights(stages))


def _stack(stages: Stages, shared: Checkpoint, experts: list[Checkpoint]) -> Stack:
    selected = parameters.select(shared, stages.run.parameters.include, stages.run.parameters.exclude)
    return exclusive_knowledge(shared, experts, selected)


def _matrices(exclusive: Stack) -> list[str]:
    return [name for name in exclusive.names if exclusive.base[name].dim() == 2]
