"""Checks of jobs whose tasks are answered by text: which options fit together, and what there is not for them."""

from __future__ import annotations

from typing import Any

from twin_merging.config import (
    CLASSES,
    IMAGES,
    LANGUAGE,
    REGISTRIES,
    CausalFineTuning,
    RunConfig,
    TfidfRouter,
    answered_as,
    domain_of,
    merge_methods,
)
from twin_merging.errors import UserError

DOMAINS = ("tasks", "finetune", "evaluation")
"""Groups whose option is for tasks of one kind, as the backbone's is."""
ANSWERS = {LANGUAGE: "by text", CLASSES: "by heads", IMAGES: "by heads, of images"}
NOT_STATIC = ("twin", "emr", "surgery")
DOLLY = "dolly"


def check_domains(run: RunConfig) -> None:
    """Raise a UserError for the first option that is not for the kind of tasks that the backbone answers."""
    for group in DOMAINS:
        chosen, of = getattr(run, group), domain_of if group == "tasks" else answered_as
        wanted = of(run.backbone)
        if of(chosen) != wanted:
            known = [name for name, each in REGISTRIES[group].items() if of(each.options) == wanted]
            raise UserError(
                f"this option does not fit the backbone, which answers {ANSWERS[wanted]}", key=f"{group}.name",
                found=f"{chosen.name} with backbone {run.backbone.name}", expected="one of " + ", ".join(known),
                hint=f"{group}={known[0]}, or a backbone that answers {ANSWERS[of(chosen)]}",
            )  # fmt: skip


def check_language(run: RunConfig) -> None:
    """Check a job of a language model whose keys are each right by themselves.

    Raises:
        UserError: for the first key that contradicts another one, or asks for what there is for classifiers alone.
    """
    _check_learning(run.tasks)
    for key, method in _methods(run).items():
        _check_method(key, method)
    if isinstance(run.router, TfidfRouter):
        raise UserError(
            "a router of token ids reads classifiers' inputs alone", key="router.name", found=run.router.name,
            expected="mlp or oracle",
        )  # fmt: skip
    if getattr(run.inference, "lower", None) == "shared":
        raise UserError(
            "a prompt is routed once, before its answer begins, so that no pass does both", key="inference.lower",
            found="shared with a language model", expected="mixed",
        )  # fmt: skip
    if run.experts.labels:
        raise UserError("a language model has no head", key="experts.labels", found=run.experts.labels, expected="null")
    tuning = run.finetune
    if isinstance(tuning, CausalFineTuning) and tuning.batch_size % min(tuning.micro_batch, tuning.batch_size):
        raise UserError(
            "a step is made of whole micro batches", key="finetune.micro_batch", found=tuning.micro_batch,
            expected=f"a divisor of batch_size={tuning.batch_size}",
        )  # fmt: skip


def is_language(run: RunConfig) -> bool:
    """Whether the job's tasks are answered by text."""
    return domain_of(run.backbone) == LANGUAGE


def _methods(run: RunConfig) -> dict[str, Any]:
    """The merge method and twin's shared one, by key."""
    held = {"merge_method.shared": getattr(run.merge_method, "shared", None)}
    return {"merge_method": run.merge_method, **{key: method for key, method in held.items() if method is not None}}


def _check_method(key: str, method: Any) -> None:
    if not _is_usable(method):
        usable = [name for name, known in merge_methods.items() if _is_usable(known.options)]
        raise UserError(
            "this method needs data or heads that a language model's tasks do not give it", key=f"{key}.name",
            found=method.name, expected="one of " + ", ".join(usable),
        )  # fmt: skip


def _is_usable(options: Any) -> bool:
    """Of a method's options or their class: whether weights and rows to route suffice for it."""
    return getattr(options, "needs", None) is None and (options.name == "twin" or options.name not in NOT_STATIC)


def _check_learning(tasks: Any) -> None:
    """Check what experts learn from."""
    for name, source in (tasks.learn or {}).items():
        if (name, source) != ("mmlu", DOLLY) and source != name:
            raise UserError(
                "an expert of this task cannot learn from that", key=f"tasks.learn.{name}", found=source,
                expected=f"{name}, or {DOLLY} for mmlu",
            )  # fmt: skip
