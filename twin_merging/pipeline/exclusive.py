"""Exclusive knowledge as stages: matrices are decomposed once for all ranks, then every parameter is compressed."""

from __future__ import annotations

from pathlib import Path

from twin_merging import basis as bases
from twin_merging import parameters
from twin_merging.checkpoints import Checkpoint
from twin_merging.config import sparsifiers
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
    options, parts = stages.run.sparsifier, Parts(scratch / "parts")
    bases.decompose(_exclusive(stages), exclusive_stages.shared_rank(options), options.solver, parts)
    parts.move(folder)


def exclusive(stages: Stages, folder: Path, scratch: Path) -> None:
    """Compressed v_t of all tasks, as ``tensors_of`` names it."""
    knowledge, options, parts = _exclusive(stages), stages.run.sparsifier, Parts(scratch / "parts")
    sparsify = sparsifiers[options.name].load()
    statistics = None
    if kind_of(sparsify).needs == "spectra":
        statistics = bases.Vectors(stages.get(exclusive_stages.basis(stages)).folder, knowledge, options)
    modularize(
        lambda name, kept: parts.add(name, tensors_of(name, kept)), sparsify, options, knowledge,
        seed=stages.run.seed, statistics=statistics, names=parts.missing(knowledge.names),
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
