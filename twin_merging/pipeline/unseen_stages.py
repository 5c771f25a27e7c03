"""Tasks that are evaluated though their expert is neither merged nor routed to (paper section 4.2, Table 5).

A merged encoder has no head for such a task. Two ways to give it one, by ``evaluation.unseen_head``:

- ``expert``, the authors' way: their GLUE code evaluates every task with the head that was fine-tuned together with the
  task's own expert. That expert is fine-tuned here too, and of it the head alone is used; its encoder is the reference of
  the normalized score. The head has seen the task, so "unseen" is the encoder alone.
- ``frozen``: a new head, trained on features of the task's training rows by the shared encoder, which is frozen: θ_s of
  twin, the merged encoder of a static method. No fine-tuned encoder of the task is needed, so there is no reference and
  no normalized score. A zero-shot head, as CLIP's, is not trained.

With routed heads neither is used: the head of the router's top task answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twin_merging.pipeline.stage import Stage, by
from twin_merging.tasks.base import TEST, TRAIN

if TYPE_CHECKING:
    from twin_merging.pipeline.stages import Stages

FROZEN = "frozen"
TRAINING = {"epochs": 20, "lr": 1e-3, "batch_size": 64}
"""How a head is trained on frozen features; nothing is selected."""


def is_frozen(stages: Stages) -> bool:
    """Whether unseen tasks get a head of frozen features."""
    return stages.run.evaluation.unseen_head == FROZEN


def expert_reference(stages: Stages, name: str) -> Stage:
    """Features of an unseen task's test rows by its own expert."""
    return stages.encoded(stages.expert(name), TEST, [name], f"the {name} expert")


def frozen_head(stages: Stages, name: str) -> Stage:
    """A head for an unseen task, trained on the shared encoder's features of its training rows."""
    features = frozen_features(stages, name)
    options = {**TRAINING, "seed": stages.run.seed, **stages.heads_from(name)}
    inputs = (stages.base, features, stages.data(name))
    return Stage("head", f"{name}, on frozen features", options, inputs, by("unseen", "frozen_head", stages, name))


def frozen_features(stages: Stages, name: str) -> Stage:
    """What that head is trained on."""
    return stages.encoded(stages.shared, TRAIN, [name], f"the {stages.shared.label} encoder, {name}")


def needed(stages: Stages) -> tuple[Stage, ...]:
    """What the result reads for unseen tasks beyond their features."""
    if is_frozen(stages):
        return tuple(frozen_head(stages, name) for name in stages.unseen)
    return tuple(stage for name in stages.unseen for stage in (stages.expert(name), expert_reference(stages, name)))


def determining(stages: Stages, options: dict[str, Any]) -> dict[str, Any]:
    """The evaluation's options that matter: without unseen tasks, nothing about their heads does."""
    if stages.unseen:
        return {**options, "unseen": stages.unseen}
    return {key: value for key, value in options.items() if key != "unseen_head"}
