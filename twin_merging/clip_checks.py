"""Checks of jobs whose backbone is CLIP: what there is not for attention with packed projections and heads that do not learn."""

from __future__ import annotations

from typing import Any

from twin_merging.config import Clip, RunConfig
from twin_merging.errors import UserError

UNSEEN = {
    "fisher": "the gradient of each single example is not known for packed attention, class token and projection",
    "gram": "packed attention does not show the inputs of its matrices",
}
"""By what a method needs, why it is not to be had."""


def check_clip(run: RunConfig) -> None:
    """Raise a UserError for the first option that does not go with CLIP."""
    if not isinstance(run.backbone, Clip):
        return
    if run.finetune.name != "full":
        raise UserError(
            "packed attention has no low-rank adapters here, and heads do not learn", key="finetune.name",
            found=f"{run.finetune.name} with backbone clip", expected="full", hint="finetune=full",
        )  # fmt: skip
    if getattr(run.finetune, "backbone_dropout", None):
        raise UserError(
            "CLIP has no dropout", key="finetune.backbone_dropout", found=run.finetune.backbone_dropout, expected="null or 0"
        )  # fmt: skip
    for key, method in _methods(run.merge_method).items():
        needs = getattr(method, "needs", None)
        if needs in UNSEEN:
            raise UserError(
                UNSEEN[needs], key=f"{key}.name", found=f"{method.name} with backbone clip",
                expected="another merge_method, or backbone=dinov2_small for regmean",
            )  # fmt: skip


def _methods(method: Any) -> dict[str, Any]:
    held = {f"merge_method.{inner}": getattr(method, inner, None) for inner in ("shared", "merge")}
    return {"merge_method": method, **{key: each for key, each in held.items() if each is not None}}
