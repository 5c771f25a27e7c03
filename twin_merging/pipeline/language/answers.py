"""What the stages of answers compute: texts of experts, of merged models and of twins, and what they are worth."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from twin_merging.checkpoints import Checkpoint
from twin_merging.config import GroupWise, evaluations, inferences
from twin_merging.dynamic.grouping import group_means
from twin_merging.dynamic.plan import explanation
from twin_merging.evaluation.exams import Marks, answer_all
from twin_merging.experts.language import expert_model
from twin_merging.pipeline.language.data import suite_of
from twin_merging.pipeline.language.read import answering_size, backbone_of, exams_of, shared_changes
from twin_merging.pipeline.language.routing import weights_of
from twin_merging.pipeline.stage import Stage
from twin_merging.sparsifiers.stored import read_back

if TYPE_CHECKING:
    from twin_merging.pipeline.language.stages import LanguageStages

log = logging.getLogger("twin_merging")
ANSWERS, MARKS, TWIN = "answers.json", "marks.json", "twin.json"


def by_expert(stages: LanguageStages, name: str, folder: Path, scratch: Path) -> None:
    """An expert's answers to its own exams."""
    model = expert_model(backbone_of(stages), stages.get(stages.expert(name)).folder)
    _write(folder, _answers(stages, model, [name], stages.run.evaluation.batch_size, f"{name} expert"))


def by_static(stages: LanguageStages, folder: Path, scratch: Path) -> None:
    """A merged model's answers to all exams."""
    model = backbone_of(stages).model_with(shared_changes(stages))
    _write(folder, _answers(stages, model, stages.evaluated, stages.run.evaluation.batch_size, stages.method.name))


def by_joint(stages: LanguageStages, folder: Path, scratch: Path) -> None:
    """The answers of the model that was fine-tuned on all tasks at once, to all exams."""
    model = expert_model(backbone_of(stages), stages.get(stages.joint).folder)
    _write(folder, _answers(stages, model, stages.evaluated, stages.run.evaluation.batch_size, stages.method.name))


def by_twin(stages: LanguageStages, folder: Path, scratch: Path) -> None:
    """Answers to all exams, each prompt under weights of its own that hold for its whole answer."""
    options, weights = stages.run.inference, weights_of(stages)
    if isinstance(options, GroupWise):
        weights = group_means(weights, options.groups, stages.run.seed)
    model = twin_of(stages)
    together = torch.cat([weights[name] for name in stages.evaluated])
    answers = _answers(stages, model, stages.evaluated, answering_size(stages), stages.method.name, together)
    _write(folder, answers)
    (folder / TWIN).write_text(json.dumps({"dropped": model.mixture.dropped}))
    if options.explain:
        log.info("%s", explanation(model.plans()))


def twin_of(stages: LanguageStages) -> Any:
    """The model whose weights differ from prompt to prompt, without a router."""
    backbone, options = backbone_of(stages), stages.run.inference
    knowledge = read_back(Checkpoint(stages.get(stages.exclusive).path("exclusive.safetensors")))
    model = inferences[options.name].load()(backbone.model_with(shared_changes(stages)), knowledge, options)
    return model.to(backbone.device)


def marks(stages: LanguageStages, answers: Stage, names: list[str], folder: Path, scratch: Path) -> None:
    """What answers are worth, by task and part."""
    judge, suite = evaluations[stages.run.evaluation.name].load(), suite_of(stages, scratch / "helm")
    given = stages.get(answers).json(ANSWERS)
    found = {
        name: [
            asdict(judge(suite, exam, texts)) for exam, texts in zip(exams_of(stages, name), given[name], strict=True)
        ]
        for name in names
    }
    (folder / MARKS).write_text(json.dumps(found, indent=1))


def marks_of(stages: LanguageStages, stage: Stage) -> dict[str, list[Marks]]:
    """The marks of a stage, by task, one a part."""
    return {name: [Marks(**each) for each in parts] for name, parts in stages.get(stage).json(MARKS).items()}


def _answers(
    stages: LanguageStages, model: Any, names: Sequence[str], batch_size: int, label: str, weights: Tensor | None = None
) -> dict[str, list[list[str]]]:
    """The answers by task and part, of one call over all requests."""
    exams = [exam for name in names for exam in exams_of(stages, name)]
    complete = partial(
        backbone_of(stages).complete, model, batch_size=batch_size, label=label, weights=weights, seed=stages.run.evaluation.seed
    )  # fmt: skip
    texts = iter(answer_all(exams, complete))
    return {name: [next(texts) for _ in exams_of(stages, name)] for name in names}


def _write(folder: Path, answers: dict[str, list[list[str]]]) -> None:
    (folder / ANSWERS).write_text(json.dumps(answers, indent=1, ensure_ascii=False), encoding="utf-8")
