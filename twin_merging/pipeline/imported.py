"""What the stage of a published expert computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twin_merging import checkpoints
from twin_merging.backbones.sources import Source
from twin_merging.errors import UserError
from twin_merging.experts.published import class_outputs, reorder_outputs
from twin_merging.pipeline.artefacts import backbone_of, base_weights, read_all, task_of
from twin_merging.pipeline.stages import Stages
from twin_merging.tasks.base import Task


def imported_expert(stages: Stages, name: str, source: Source, folder: Path, scratch: Path) -> None:
    """Load a published expert, check that it is this backbone's, and save it as our own are saved."""
    from twin_merging.experts.fine_tuning import save_expert

    backbone, task = backbone_of(stages), task_of(stages, name)
    given = (stages.run.experts.labels or {}).get(name)
    model = backbone.foreign_expert(source.folder, task)
    if model is None:
        model, outputs = _in_own_form(stages, task, source, given)
    elif given is None:
        outputs = {"order": list(range(task.num_labels)), "by": "text", "found": []}
    else:
        raise UserError(
            "this expert has no head, and text makes one with the task's own classes", key=f"experts.labels.{name}",
            found=", ".join(given), expected="nothing",
        )  # fmt: skip
    backbone.check_head_reads_first_token(model)
    save_expert(backbone, model, task, {"source": source.identity, "outputs": outputs}, folder)


def _in_own_form(stages: Stages, task: Task, source: Source, given: list[str] | None) -> tuple[Any, dict[str, Any]]:
    """A published expert with a head of its own, whose outputs are in the task's order, and how that was found."""
    backbone, known = backbone_of(stages), stages.get(stages.base).json("base.json")
    about = backbone.about(source.folder)
    found = about.get("model_type")
    if found != known["model_type"]:
        raise UserError(
            "an expert of another architecture than the base's", key=str(source.folder), found=found, expected=known["model_type"],
            hint="experts.source and backbone.pretrained must be of one architecture",
        )  # fmt: skip
    model = backbone.load(source.folder, task.num_labels, task.kind == "regression")
    checkpoints.check(backbone.encoder(model).state_dict(), read_all(base_weights(stages)), str(source.folder))
    outputs = class_outputs(about, task, given, str(source.folder))
    reorder_outputs(model, outputs["order"])
    return model, outputs
