"""Checks that need more than one key: of tasks, evaluation, routing, experts and methods."""

from __future__ import annotations

from typing import Any

from twin_merging.clip_checks import check_clip
from twin_merging.config import (
    CLASSES,
    IMAGES,
    Expert,
    Magnitude,
    RunConfig,
    Svd,
    TaskUnknown,
    TfidfRouter,
    answered_as,
    bytes_of,
    domain_of,
)
from twin_merging.errors import UserError
from twin_merging.language_checks import check_domains, check_language, is_language

DEFAULT_SIZES: dict[type, tuple[str, Any]] = {Svd: ("rank", 16), Magnitude: ("fraction", 0.1)}
NESTED = {"shared": "a shared expert", "merge": "what surgery operates on"}
"""Keys of a method that hold a static method, and what that makes."""


def check_references(run: RunConfig) -> None:
    """Check a job whose keys are each right by themselves.

    Raises:
        UserError: for the first key that contradicts another one.
    """
    if getattr(run.backbone, "pixels", None) is not None:
        bytes_of(run.backbone.pixels, "backbone.pixels")
    check_domains(run)
    merged = _check_tasks(run)
    _check_experts(run)
    if is_language(run):
        check_language(run)
    else:
        _check_evaluation(run)
    if run.tasks.unseen:
        _check_unseen(run)
    _check_method(run, merged)
    check_size(run.sparsifier)
    _check_routing(run)
    check_clip(run)


def _check_tasks(run: RunConfig) -> list[str]:
    """The tasks that merge, which are those of ``tasks.names`` that are not unseen."""
    if not run.tasks.names:
        raise UserError(
            "no task is named", key="tasks.names", found="[]", expected="at least one task, as in [cola,sst2]"
        )
    for key, names in (("tasks.names", run.tasks.names), ("tasks.unseen", run.tasks.unseen)):
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UserError("a task is named twice", key=key, found=", ".join(repeated))
    merged = [name for name in run.tasks.names if name not in run.tasks.unseen]
    if not merged:
        raise UserError(
            "no task is left to merge", key="tasks.unseen", found=", ".join(run.tasks.unseen), expected="not all of tasks.names"
        )  # fmt: skip
    return merged


def _check_experts(run: RunConfig) -> None:
    by_pattern = {*run.tasks.names, *run.tasks.unseen} - {*(run.experts.sources or ())}
    if run.experts.source is not None and len(by_pattern) > 1 and "{task}" not in run.experts.source:
        raise UserError(
            "one pattern has to name every expert",
            key="experts.source", found=run.experts.source, expected="a folder or hub name with {task} in it",
        )  # fmt: skip
    for name, where in (run.experts.sources or {}).items():
        if not where:
            raise UserError(
                "no place", key=f"experts.sources.{name}", found="''", expected="a folder or hub name[@revision]"
            )
    _check_normalization(run)
    if run.experts.source is None:
        for name in run.experts.labels or {}:
            if name not in (run.experts.sources or {}):
                raise UserError(
                    "this expert is fine-tuned here, and its head has the task's own classes", key=f"experts.labels.{name}",
                    found=name, expected="tasks of experts.sources, or experts.source",
                )  # fmt: skip


def _check_normalization(run: RunConfig) -> None:
    """Raise a UserError if some tasks' scores would be relative to published ones and some to measured ones."""
    published = run.experts.reference or {}
    missing = [name for name in run.tasks.names if name not in published]
    if run.experts.normalize_by == "published" and missing:
        known = [name for name in run.tasks.names if name in published]
        raise UserError(
            "an average over published and measured references says nothing", key="experts.reference",
            found=f"a published score of {', '.join(known) or 'no task'}; none of {', '.join(missing)}",
            expected="one of every task in tasks.names", hint="experts.normalize_by=measured takes what the experts score here",
        )  # fmt: skip
    if run.experts.normalize_by == "published" and (low := [name for name in run.tasks.names if published[name] <= 0]):
        raise UserError(
            "nothing is relative to 0",
            key=f"experts.reference.{low[0]}",
            found=published[low[0]],
            expected="more than 0",
        )


def _check_evaluation(run: RunConfig) -> None:
    if run.evaluation.heads == "routed" and run.router.name == "oracle":
        raise UserError(
            "an oracle router gives the true task, so routed heads would be oracle heads",
            key="evaluation.heads", found="routed with router=oracle", expected="oracle, or router=mlp",
        )  # fmt: skip
    if isinstance(run.evaluation, TaskUnknown):
        _check_task_unknown(run)
    if run.evaluation.excluded == "task":
        _check_own_values(run)


def _check_method(run: RunConfig, merged: list[str]) -> None:
    """Check the merge method, and the static method that it may hold."""
    held = {f"merge_method.{inner}": getattr(run.merge_method, inner, None) for inner in NESTED}
    for key, method in {"merge_method": run.merge_method, **held}.items():
        if isinstance(method, Expert) and method.index >= len(merged):
            raise UserError(
                "no task has this place", key=f"{key}.index", found=method.index,
                expected=", ".join(f"{index} ({name})" for index, name in enumerate(merged)), nearest=str(len(merged) - 1),
            )  # fmt: skip
        gamma = getattr(method, "gamma", None)
        if gamma is not None and len(gamma) != len(merged):
            raise UserError(
                "one γ for each merged task", key=f"{key}.gamma", found=f"{len(gamma)} of them", expected=f"{len(merged)}: {', '.join(merged)}"
            )  # fmt: skip
    if run.merge_method.name == "multitask" and run.finetune.name != "full" and answered_as(run.finetune) == CLASSES:
        raise UserError(
            "joint training trains all parameters", key="finetune.name", found=f"{run.finetune.name} with multitask",
            expected="full",
        )  # fmt: skip


def _check_routing(run: RunConfig) -> None:
    """Check inference and router, which agree on what is below the layer that the router reads."""
    if hasattr(run.inference, "memory"):
        bytes_of(run.inference.memory, "inference.memory")
    shares_lower = getattr(run.inference, "lower", None) == "shared"
    if isinstance(run.router, TfidfRouter):
        if domain_of(run.backbone) == IMAGES:
            raise UserError(
                "a router of token ids reads texts alone", key="router.name", found=f"{run.router.name} with backbone {run.backbone.name}",
                expected="mlp or oracle",
            )  # fmt: skip
        if not run.router.grid:
            raise UserError(
                "no C to choose from", key="router.grid", found="[]", expected="at least one, as in [1.0,10.0]"
            )
        if shares_lower:
            raise UserError(
                "this router reads token ids, so that one pass answers and no layer is below what it reads", key="inference.lower",
                found="shared with router=tfidf", expected="mixed, which takes no other pass",
            )  # fmt: skip
    if getattr(run.router, "token", "mean") == "last" and answered_as(run.backbone) == CLASSES:
        raise UserError(
            "an encoder's last token says no more than any other", key="router.token", found=f"last with backbone {run.backbone.name}",
            expected="mean", hint="last is for language models",
        )  # fmt: skip
    if shares_lower and getattr(run.router, "layer", -1) < 0:
        raise UserError(
            "nothing is below the layer that this router reads", key="inference.lower", found=f"shared with router={run.router.name}",
            expected="a router of an early layer", hint="router=mlp_early, or router.layer=K",
        )  # fmt: skip


def _check_unseen(run: RunConfig) -> None:
    unseen = ", ".join(run.tasks.unseen)
    if run.merge_method.name in ("finetuned", "surgery"):
        raise UserError(
            "this method has to know a task to answer for it", key="tasks.unseen", found=f"{unseen} with {run.merge_method.name}",
            expected="no unseen task, or another merge_method",
        )  # fmt: skip
    if run.router.name == "oracle" and run.merge_method.name in ("twin", "emr"):
        raise UserError(
            "an oracle router has no expert for a task that is unseen", key="router", found="oracle with tasks.unseen",
            expected="a trained router",
        )  # fmt: skip


def _check_own_values(run: RunConfig) -> None:
    if run.evaluation.heads == "routed":
        raise UserError(
            "the true task's values are known with the true task's head only", key="evaluation.excluded",
            found="task with evaluation.heads=routed", expected="pretrained",
        )  # fmt: skip
    if run.tasks.unseen:
        raise UserError(
            "the values of a task that is not merged are not known", key="evaluation.excluded", found="task with tasks.unseen",
            expected="pretrained",
        )  # fmt: skip
    if run.merge_method.name == "surgery":
        raise UserError(
            "adapters are learned on one encoder for all tasks", key="evaluation.excluded",
            found="task with merge_method=surgery", expected="pretrained",
        )  # fmt: skip


def _check_task_unknown(run: RunConfig) -> None:
    if run.router.name == "oracle":
        raise UserError(
            "an oracle router knows the task, which this evaluation takes as unknown", key="router",
            found="oracle with evaluation=task_unknown", expected="a router that is trained", nearest="mlp",
        )  # fmt: skip
    if run.evaluation.excluded == "task":
        raise UserError(
            "the true task's values are not known where the task is not", key="evaluation.excluded",
            found="task with evaluation=task_unknown", expected="pretrained",
        )  # fmt: skip
    if run.tasks.unseen:
        raise UserError(
            "the stream has rows of merged tasks alone", key="evaluation", found="task_unknown with tasks.unseen",
            expected="evaluation=scores; a new domain is made by leaving each task out in turn",
        )  # fmt: skip
    if len(run.tasks.names) < 2:
        raise UserError(
            "a task is unknown only among others", key="tasks.names", found=f"[{run.tasks.names[0]}] with evaluation=task_unknown",
            expected="at least two tasks",
        )  # fmt: skip


def check_size(sparsifier: Any) -> None:
    """Check that at most one of the keys that say how much is kept is set, and set the default if none is."""
    if type(sparsifier) not in DEFAULT_SIZES:
        return
    default, value = DEFAULT_SIZES[type(sparsifier)]
    known = [name for name in ("rank", "fraction", "budget", "energy") if hasattr(sparsifier, name)]
    given = [name for name in known if getattr(sparsifier, name) is not None]
    if len(given) > 1:
        raise UserError(
            "at most one of these can be set", key="sparsifier", found=" and ".join(given),
            expected=f"{', '.join(known[:-1])} or {known[-1]}", hint=f"add sparsifier.{given[0]}=null",
        )  # fmt: skip
    if not given:
        setattr(sparsifier, default, value)
