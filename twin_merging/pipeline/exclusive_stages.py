"""The stages of exclusive knowledge: singular vectors, what a sparsifier keeps of each task, and emr's one vector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twin_merging.config import Svd, sparsifiers
from twin_merging.merging.method import can_draw
from twin_merging.pipeline.labels import describe
from twin_merging.pipeline.stage import Stage, by
from twin_merging.validation import to_plain

if TYPE_CHECKING:
    from twin_merging.pipeline.stages import Stages

SHARED_RANK = 64  # ranks up to this share one decomposition, larger ones that of all triplets


def compressed(stages: Stages) -> Stage:
    """v_t = sparsify(θ_t − θ_s) of every task."""
    component = sparsifiers[stages.run.sparsifier.name]
    options = {
        "sparsifier": to_plain(stages.run.sparsifier), "code": component.code_hash(),
        "parameters": to_plain(stages.run.parameters),
    }  # fmt: skip
    if can_draw(component.load()):
        options["seed"] = stages.run.seed
    inputs = (stages.base, *stages.experts, stages.shared)
    if isinstance(stages.run.sparsifier, Svd):
        inputs = (*inputs, basis(stages))
    load = by("exclusive", "exclusive", stages)
    return Stage("exclusive", describe(stages.run.sparsifier), options, inputs, load, version=2)


def basis(stages: Stages) -> Stage:
    """Singular values and vectors of θ_t − θ_s, which serve every rank up to a cap."""
    svd = stages.run.sparsifier
    cap = shared_rank(svd)
    options = {
        "cap": cap, "solver": svd.solver, "code": sparsifiers[svd.name].code_hash(),
        "parameters": to_plain(stages.run.parameters),
    }  # fmt: skip
    label = f"singular vectors, {'all' if cap is None else cap} a matrix"
    inputs = (stages.base, *stages.experts, stages.shared)
    return Stage("basis", label, options, inputs, by("exclusive", "basis", stages))


def elected(stages: Stages) -> Stage:
    """What all tasks share of their τ_t, and which of it is whose, with a rescaler each."""
    options: Any = {"method": to_plain(stages.method), "parameters": to_plain(stages.run.parameters)}
    inputs = (stages.base, *stages.experts)
    return Stage("exclusive", "one vector, masks, rescalers", options, inputs, by("elected", "exclusive", stages))


def shared_rank(svd: Svd) -> int | None:
    """How many singular triplets of each matrix are found, so that other ranks need no decomposition of their own."""
    return SHARED_RANK if svd.rank is not None and svd.rank <= SHARED_RANK else None
