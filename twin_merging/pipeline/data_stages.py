"""The stages of what sees data between the experts and the scores: statistics, coefficients, adapters, joint training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from twin_merging.config import finetunings
from twin_merging.errors import UserError
from twin_merging.pipeline import batchnorm_stages, expert_stages
from twin_merging.pipeline.stage import Stage, by
from twin_merging.validation import to_plain

if TYPE_CHECKING:
    from twin_merging.pipeline.stages import Stages

OBSERVED = {"fisher": ("rows", "labels"), "gram": ("rows",)}
"""Statistics of one expert on its own rows, by ``Kind.needs``, with the options of the method that determine them."""


def statistics(stages: Stages, method: Any) -> tuple[Stage, ...]:
    """What a static method has to know from data: a stage an expert, or one of all; none for data-free methods.

    The method's other options are no part of it, so that a sweep over them computes it once.
    """
    needs = getattr(method, "needs", None)
    if needs is None:
        return ()
    if needs == "coefficients":
        return (coefficients(stages, method),)
    options = {key: getattr(method, key) for key in OBSERVED[needs]} | _precision(stages)
    if options.get("labels") == "sampled":
        options["seed"] = stages.run.seed
    return tuple(
        Stage(needs, name, options, (expert, stages.data(name)), by("data_methods", needs, stages, method, index))
        for index, (name, expert) in enumerate(zip(stages.names, stages.experts, strict=True))
    )


def coefficients(stages: Stages, method: Any) -> Stage:
    """λ learned on inputs without labels."""
    options = {
        "method": to_plain(method), "parameters": to_plain(stages.run.parameters), "seed": stages.run.seed, **_precision(stages),
    }  # fmt: skip
    inputs = (stages.base, *stages.experts, *map(stages.data, stages.names))
    load = by("data_methods", "coefficients", stages, method)
    return Stage("learn", f"λ of {method.name}", options, inputs, load)


def adapters(stages: Stages) -> Stage:
    """Surgery's adapters, from the merged encoder's and the experts' features of inputs without labels."""
    method = stages.method
    options = {key: value for key, value in to_plain(method).items() if key != "merge"} | {"seed": stages.run.seed}
    inputs = (*seen_by_surgery(stages), *map(stages.data, stages.names))
    return Stage("learn", "adapters of surgery", options, inputs, by("data_methods", "adapters", stages))


def seen_by_surgery(stages: Stages) -> list[Stage]:
    """Features that adapters learn from: the merged encoder's, then each expert's of its own task."""
    split = stages.method.inputs
    experts = [stages.encoded_by_expert(index, split) for index in range(len(stages.names))]
    return [stages.encoded_by_shared(split), *experts]


def joint(stages: Stages) -> Stage:
    """One encoder and a head a task, trained on all tasks at once."""
    options = {
        "finetune": expert_stages.determining(stages.run.finetune), "code": finetunings[stages.run.finetune.name].code_hash(),
        "seed": stages.run.training_seed, **_precision(stages), **stages.heads_from(*stages.names),
        **expert_stages.augmented(stages.run.backbone), **batchnorm_stages.determining(stages),
    }  # fmt: skip
    inputs = (stages.base, *map(stages.data, stages.names))
    return Stage("joint", ", ".join(stages.names), options, inputs, by("data_methods", "joint", stages))


def check_classes(method: Any, kinds: Mapping[str, str]) -> None:
    """Raise a UserError if λ would be learned by the entropy of a regression's answers, which have none.

    Args:
        method: of the job; it may hold another one.
        kinds: each task's ``kind``.
    """
    methods = [method, getattr(method, "shared", None), getattr(method, "merge", None)]
    regressions = [name for name, kind in kinds.items() if kind == "regression"]
    if regressions and any(getattr(each, "needs", None) == "coefficients" for each in methods):
        raise UserError(
            "this method minimizes the entropy of class probabilities, which a regression does not have",
            key="merge_method", found=f"adamerging with {', '.join(regressions)}", expected="classification tasks only",
            hint="leave these out of tasks.names, or choose another merge_method",
        )  # fmt: skip


def _precision(stages: Stages) -> dict[str, Any]:
    return {"precision": stages.precision, **stages.reading}
