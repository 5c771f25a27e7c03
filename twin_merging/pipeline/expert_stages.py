"""The stages of experts: fine-tuned here, or imported from what others published."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from twin_merging.config import Clip, ImageClassifier, finetunings
from twin_merging.experts.published import located
from twin_merging.pipeline import batchnorm_stages
from twin_merging.pipeline.stage import Stage, by
from twin_merging.validation import to_plain

if TYPE_CHECKING:
    from twin_merging.pipeline.stages import Stages


def tuning_of(finetune: Any, name: str) -> Any:
    """How one task's expert is fine-tuned: with epochs of its own where ``task_epochs`` has some."""
    own = (getattr(finetune, "task_epochs", None) or {}).get(name)
    return finetune if own is None else replace(finetune, epochs=own)


NOT_DETERMINING = ("task_epochs", "workers")
"""Options of fine-tuning that a task's own stand for, or that change its speed alone."""


def determining(finetune: Any) -> dict[str, Any]:
    """The options of fine-tuning that matter, once those of a task are its own."""
    return {key: value for key, value in to_plain(finetune).items() if key not in NOT_DETERMINING}


def augmented(backbone: Any) -> dict[str, str]:
    """The backbone's option that determines what training sees, where that is not what evaluation sees."""
    kind = getattr(backbone, "augment", "none")
    return {} if kind == "none" else {"augment": kind}


def trained(stages: Stages, name: str) -> Stage:
    """θ_t and its head, fine-tuned here."""
    run = stages.run
    options = {
        "finetune": determining(tuning_of(run.finetune, name)), "code": finetunings[run.finetune.name].code_hash(), **stages.reading,
        "precision": stages.precision, "seed": run.training_seed, **stages.heads_from(name), **augmented(run.backbone),
        **batchnorm_stages.determining(stages),
    }  # fmt: skip
    version = 2 if isinstance(run.backbone, ImageClassifier) else 1  # the chosen epoch was not restored whole
    inputs = (stages.base, stages.data(name))
    return Stage("expert", name, options, inputs, by("compute", "expert", stages, name), version)


def imported(stages: Stages, name: str, where: str) -> Stage:
    """θ_t and its head from a folder, the mirror or the hub.

    Raises:
        UserError: if it is not there.
    """
    experts = stages.run.experts
    key = f"experts.sources.{name}" if name in (experts.sources or {}) else "experts.source"
    bare = isinstance(stages.run.backbone, Clip)  # of which image encoders are published, and text makes the heads
    source = located(where, stages.asset_folder, key, stages.mirror, bare)
    labels = (experts.labels or {}).get(name)
    options = {"source": source.identity, "labels": labels, **stages.heads_from(name)}
    load = by("imported", "imported_expert", stages, name, source)
    return Stage("expert", f"{name} from {where}", options, (stages.base, stages.data(name)), load, version=2)
