"""Artefacts read back as what a language model's stages work with: rows, exams, weights, tasks as a router knows them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from twin_merging.backbones.causal_lm import CausalLMBackbone
from twin_merging.checkpoints import Checkpoint
from twin_merging.evaluation.exams import Exam
from twin_merging.mapped import MappedCheckpoint
from twin_merging.pipeline import artefacts
from twin_merging.standalone import layout
from twin_merging.standalone.adapters import Adapter
from twin_merging.standalone.layout import Layout
from twin_merging.standalone.options import MergeOptions
from twin_merging.standalone.sources import ADAPTER_WEIGHTS, Source
from twin_merging.tasks.base import TEST, TRAIN, VALIDATION, Split, Task
from twin_merging.tasks.generation import Example

if TYPE_CHECKING:
    from twin_merging.pipeline.language.stages import LanguageStages

EXAM, PROVENANCE, MERGED, CHOICES = "exam.json", "provenance.json", "merged.safetensors", "choices.json"
LEARNED = {TRAIN: "train.json", VALIDATION: "validation.json"}


def backbone_of(stages: LanguageStages) -> CausalLMBackbone:
    return cast(CausalLMBackbone, artefacts.backbone_of(cast(Any, stages)))


def examples_of(stages: LanguageStages, name: str, split: str, rows: int | None = None) -> list[Example]:
    """The first rows of a split that a task's expert and the router learn from."""
    return [Example(*pair) for pair in stages.get(stages.learned(name)).json(LEARNED[split])][:rows]


def provenance_of(stages: LanguageStages, name: str) -> dict[str, Any]:
    """Where a task's rows are from, what was left out, and what was asked."""
    exams = exams_of(stages, name)
    asked = [
        {"part": exam.part, "split": exam.split, "rows": len(exam.questions), "fingerprint": exam.fingerprint()}
        for exam in exams
    ]
    return {**stages.get(stages.learned(name)).json(PROVENANCE), "exams": asked}


def exams_of(stages: LanguageStages, name: str) -> list[Exam]:
    """A task's exams, one a part."""
    return list(_read_exams(stages.get(stages.exam(name)).path(EXAM)))


@lru_cache(maxsize=32)
def _read_exams(path: Path) -> tuple[Exam, ...]:
    return tuple(Exam.of(plain) for plain in json.loads(path.read_text(encoding="utf-8")))


def prompts_of(stages: LanguageStages, name: str) -> list[str]:
    """The prompts of a task's exams, one after the other."""
    return [request.prompt for exam in exams_of(stages, name) for request in exam.requests]


def tasks_of(stages: LanguageStages) -> list[Task]:
    """The merged tasks as a router knows them: prompts in three splits, and no labels."""
    return [
        Task(
            name, "single_label", ("text",), None, "accuracy",
            {
                **{split: _prompts([row.prompt for row in examples_of(stages, name, split)]) for split in LEARNED},
                TEST: _prompts(prompts_of(stages, name)),
            },
            {},
        )
        for name in stages.names
    ]  # fmt: skip


def _prompts(prompts: list[str]) -> Split:
    return Split([(prompt,) for prompt in prompts], [0] * len(prompts))


def layout_of(stages: LanguageStages) -> Layout:
    """θ₀ and the experts, matched by name and shape; nothing of them is read yet.

    Raises:
        UserError: for the first thing in which an expert does not fit the base.
    """
    base = Source("backbone.pretrained", stages.run.backbone.pretrained, backbone_of(stages).folder, {})
    experts = [
        Source(f"the {name} expert", name, stages.get(stage).folder, {})
        for name, stage in zip(stages.names, stages.experts, strict=True)
    ]
    return layout.plan(MergeOptions(parameters=stages.run.parameters), base, experts)


def shared_changes(stages: LanguageStages) -> Mapping[str, Tensor]:
    """The tensors in which the shared model, or a static method's, differs from θ₀; read, or made, when they are asked for."""
    if stages.shared is stages.base:
        return {}
    return changes_in(stages, stages.get(stages.shared).folder)


def changes_in(stages: LanguageStages, folder: Path) -> Mapping[str, Tensor]:
    """The same of a folder that a merge was written to: tensors, or an adapter."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        return Checkpoint(folder / MERGED)
    return Adapter(MappedCheckpoint(backbone_of(stages).folder), Source("merged", "merged", folder, {})).changed


def answering_size(stages: LanguageStages) -> int:
    """Prompts that are answered at once."""
    return (stages.run.inference if stages.is_twin else stages.run.evaluation).batch_size
