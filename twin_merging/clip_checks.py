"""Checks of jobs whose backbone is CLIP: what there is not for attention with packed projections and heads that do not learn."""

from __future__ import annotations

from twin_merging.config import Clip, RunConfig
from twin_merging.errors import UserError


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
