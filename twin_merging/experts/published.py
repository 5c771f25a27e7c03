"""Experts that others trained: where each comes from, and which output of its head stands for which class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twin_merging.backbones.sources import ASSET, Source, locate
from twin_merging.config import Experts
from twin_merging.errors import UserError
from twin_merging.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UNNAMED = re.compile(r"(label_?)?\d+")


def source_of(experts: Experts, task: str) -> str | None:
    """The folder or hub name of a task's expert, from ``sources``, else by the pattern; None if it is trained here."""
    pattern = (experts.sources or {}).get(task, experts.source)
    return None if pattern is None else pattern.replace("{task}", task)


def split_revision(given: str) -> tuple[str, str | None]:
    """``name@revision`` of the hub in its parts; a folder or an asset has no revision."""
    if given.startswith(ASSET) or Path(given).expanduser().is_dir():
        return given, None
    name, _, revision = given.partition("@")
    return name, revision or None


def located(given: str, asset_folder: Path, key: str, mirror: Path | None = None, bare: bool = False) -> Source:
    """The expert's weights; see ``locate`` for what it raises, and what is ``bare``."""
    name, revision = split_revision(given)
    return locate(name, revision, asset_folder, key, mirror=mirror, bare=bare)


def class_outputs(config: Mapping[str, Any], task: Task, given: Sequence[str] | None, where: str) -> dict[str, Any]:
    """Which of a published head's outputs stands for each of the task's classes.

    Names are compared without case and punctuation. ``LABEL_0``, ``LABEL_1`` name nothing: the order is then the task's
    own, unless ``experts.labels`` says another one.

    Args:
        config: the head's config.json.
        given: of ``experts.labels``, the class of each output.
        where: what is named in errors.

    Returns:
        Plain JSON: ``order``, the output of each class; ``by``, what says so: ``name``, ``experts.labels`` or ``place``;
        and ``found``, the head's own names.

    Raises:
        UserError: if the names are not those of the task's classes.
    """
    names = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
    found = [names[index] for index in sorted(names)]
    in_place = {"order": list(range(task.num_labels)), "by": "place", "found": found}
    if task.kind == "regression":
        return in_place
    if given is None and (len(found) != task.num_labels or all(UNNAMED.fullmatch(name.lower()) for name in found)):
        return in_place
    wanted, outputs = [_plain(name) for name in task.class_names], [_plain(name) for name in given or found]
    if sorted(wanted) != sorted(outputs):
        raise UserError(
            "the head's classes are not those of the task", key=f"experts.labels.{task.name}" if given else where,
            found=", ".join(given or found), expected=", ".join(task.class_names),
            hint=f"'experts.labels={{{task.name}: [...]}}' gives the class of each output in the head's order",
        )  # fmt: skip
    order = [outputs.index(name) for name in wanted]
    return {"order": order, "by": "experts.labels" if given else "name", "found": found}


def reorder_outputs(model: PreTrainedModel, order: Sequence[int]) -> None:
    """Give a classifier's outputs another order in place: output i becomes what output ``order[i]`` was."""
    import torch

    if list(order) == list(range(len(order))):
        return
    prefix = model.base_model_prefix + "."
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module.out_features == len(order) and not name.startswith(prefix)
    ]
    last = layers[-1]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.copy_(parameter[list(order)].clone())


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).casefold())
