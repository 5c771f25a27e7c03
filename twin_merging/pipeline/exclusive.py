"""Exclusive knowledge as stages: matrices are decomposed once for all ranks, then every parameter is compressed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twin_merging import basis as bases
from twin_merging import parameters
from twin_merging.checkpoints import Checkpoint
from twin_merging.config import Svd, sparsifiers
from twin_merging.merging.apply import modularize
from twin_merging.merging.method import kind_of
from twin_merging.merging.stack import Stack
from twin_merging.merging.twin import exclusive_knowledge
from twin_merging.parts import Parts
from twin_merging.pipeline import exclusive_stages
from twin_merging.pipeline.artefacts import base_weights, expert_weights
from twin_merging.pipeline.stages import ENCODER, Stages
from twin_merging.sparsifiers.storage import room
from twin_merging.sparsifiers.stored import tensors_of


def basis(stages: Stages, folder: Path, scratch: Path) -> None:
    """Every matrix's singular values and vectors, a file a parameter."""
    write_basis(_exclusive(stages), stages.run.sparsifier, folder, scratch)


def exclusive(stages: Stages, folder: Path, scratch: Path) -> None:
    """Compressed v_t of all tasks, as ``tensors_of`` names it."""

    def found() -> Path:
        return stages.get(exclusive_stages.basis(stages)).folder

    write_exclusive(_exclusive(stages), stages.run.sparsifier, stages.run.seed, found, folder, scratch)


def write_basis(knowledge: Stack, options: Svd, folder: Path, scratch: Path) -> None:
    """What serves every rank up to a cap, a file a parameter; a killed process goes on from ``scratch``."""
    parts = Parts(scratch / "parts")
    bases.decompose(knowledge, exclusive_stages.shared_rank(options), options.solver, parts)
    parts.move(folder)


def write_exclusive(
    knowledge: Stack, options: Any, seed: int, basis: Callable[[], Path], folder: Path, scratch: Path
) -> None:
    """Compress θ_t − θ_s into ``exclusive.safetensors``.

    Args:
        basis: gives the folder of ``write_basis``; asked where the sparsifier needs it.
    """
    sparsify, parts, statistics = sparsifiers[options.name].load(), Parts(scratch / "parts"), None
    if kind_of(sparsify).needs == "spectra":
        statistics = bases.Vectors(basis(), knowledge, options)
    modularize(
        lambda name, kept: parts.add(name, tensors_of(name, kept)), sparsify, options, knowledge,
        seed=seed, statistics=statistics, names=parts.missing(knowledge.names),
    )  # fmt: skip
    parts.join(folder / "exclusive.safetensors")


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
