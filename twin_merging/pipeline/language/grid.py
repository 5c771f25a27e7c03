"""λ of a static method, chosen on the rows that experts hold out from their training."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from twin_merging.evaluation.selection import Choice, record
from twin_merging.experts.completions import fingerprint, labelled, log_likelihood
from twin_merging.pipeline.language.read import backbone_of, examples_of
from twin_merging.tasks.base import VALIDATION

if TYPE_CHECKING:
    from twin_merging.pipeline.language.stages import LanguageStages

Merge = Callable[[Any, Path], Mapping[str, Tensor]]


def merged_by_grid(stages: LanguageStages, method: Any, merge: Merge, folder: Path, scratch: Path) -> Choice:
    """Merge with each value of ``method.grid`` and keep the one under which validation completions are likeliest.

    The score of a value is the mean over tasks of the nats a token, as no expert's own would change which is highest.

    Args:
        merge: options and a folder -> what it has written there: the tensors that differ from θ₀, the same for all values.
        folder: receives the files of the one that is kept.

    Returns:
        The record of the choice.
    """
    backbone, key, scores = backbone_of(stages), getattr(method, "grid_of", "scaling"), {}
    examples = {name: examples_of(stages, name, VALIDATION) for name in stages.names}
    rows = {name: labelled(backbone, each, stages.run.finetune.max_length) for name, each in examples.items()}
    model, size, places = backbone.load(), stages.run.evaluation.batch_size, {}
    own = model.state_dict()
    for value in method.grid:
        places[value] = scratch / f"{key}={value:g}"
        places[value].mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            for name, tensor in merge(replace(method, **{key: value}), places[value]).items():
                own[name].copy_(tensor)
        likely = [log_likelihood(backbone, model, rows[name], size, f"{key} {value:g}: {name}") for name in rows]
        scores[value] = sum(likely) / len(likely)
    prints = {name: fingerprint(each) for name, each in examples.items()}
    choice = record(key, scores, VALIDATION, sum(map(len, examples.values())), prints)
    for file in places[choice["chosen"]].glob("*"):
        shutil.move(file, folder / file.name)
    return choice
