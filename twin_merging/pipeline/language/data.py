"""What the first stages compute: rows to learn from, exams, and experts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twin_merging import checkpoints
from twin_merging.backbones.sources import Source
from twin_merging.config import finetunings
from twin_merging.evaluation.helm.suite import HelmSuite
from twin_merging.experts.language import expert_weights
from twin_merging.experts.processes import in_processes
from twin_merging.mapped import MappedCheckpoint
from twin_merging.pipeline.cache import MANIFEST
from twin_merging.pipeline.language.read import EXAM, LEARNED, PROVENANCE, backbone_of, examples_of
from twin_merging.standalone.adapters import Adapter
from twin_merging.tasks.base import TRAIN, VALIDATION
from twin_merging.tasks.generation import Example

if TYPE_CHECKING:
    from twin_merging.pipeline.language.stages import LanguageStages


def learned(stages: LanguageStages, name: str, folder: Path, scratch: Path) -> None:
    """Prompts and completions of both splits, and where they are from."""
    rows = stages.task_source.learning(name, scratch / "helm")
    for split, examples in ((TRAIN, rows.train), (VALIDATION, rows.validation)):
        pairs = [[example.prompt, example.completion] for example in examples]
        (folder / LEARNED[split]).write_text(json.dumps(pairs, ensure_ascii=False), encoding="utf-8")
    used = {TRAIN: len(rows.train), VALIDATION: len(rows.validation)}
    (folder / PROVENANCE).write_text(json.dumps({**rows.provenance, "used": used}, indent=1))


def exam(stages: LanguageStages, name: str, folder: Path, scratch: Path) -> None:
    """The exams of a task, one a part."""
    exams = suite_of(stages, scratch / "helm").exams(name, stages.task_source.parts(name))
    (folder / EXAM).write_text(json.dumps([each.plain() for each in exams], ensure_ascii=False), encoding="utf-8")


def suite_of(stages: LanguageStages, benchmark: Path) -> HelmSuite:
    """HELM with this job's settings.

    Args:
        benchmark: its folder, of this process alone.
    """
    backbone, tasks = backbone_of(stages), stages.run.tasks
    return HelmSuite(
        stages.task_source.data, benchmark, backbone.tokenizer, backbone.context, tasks.shots, tasks.instances,
        tasks.article_words,
    )  # fmt: skip


def base(stages: LanguageStages, folder: Path, scratch: Path) -> None:
    """Which model θ₀ is; its weights stay where they lie."""
    entries = MappedCheckpoint(backbone_of(stages).folder).entries.values()
    record = {
        "source": stages.backbone_source.identity, "bytes": sum(entry.nbytes for entry in entries),
        "parameters": sum(entry.numel for entry in entries if entry.dtype.is_floating_point),
    }  # fmt: skip
    (folder / "base.json").write_text(json.dumps(record, indent=1))


def expert(stages: LanguageStages, name: str, folder: Path, scratch: Path) -> None:
    """Fine-tune on one task."""
    rows, held_out = (examples_of(stages, name, split) for split in (TRAIN, VALIDATION))
    _fine_tune(stages, name, rows, held_out, stages.tuning_of(name), folder, scratch)


def joint(stages: LanguageStages, folder: Path, scratch: Path) -> None:
    """Fine-tune on the union of all tasks' rows, of which batches are drawn alike: larger tasks weigh more (paper Table 7)."""
    rows, held_out = (
        [example for name in stages.names for example in examples_of(stages, name, split)]
        for split in (TRAIN, VALIDATION)
    )
    _fine_tune(stages, "all tasks", rows, held_out, stages.run.finetune, folder, scratch)


def _fine_tune(
    stages: LanguageStages, name: str, rows: list[Example], held_out: list[Example], options: Any, folder: Path, scratch: Path
) -> None:  # fmt: skip
    """In this process, or in several if ``finetune.accelerate`` says so."""
    run, common = (
        stages.run,
        (backbone_of(stages), name, rows, held_out, options, stages.run.training_seed, folder, scratch),
    )
    if getattr(options, "accelerate", None) is None:
        finetunings[run.finetune.name].load()(*common)
    else:
        in_processes(*common, plugins=run.plugins)


def imported_expert(stages: LanguageStages, source: Source, folder: Path, scratch: Path) -> None:
    """Check that a published expert is this backbone's, and copy it as it is: an adapter, or a whole model.

    Raises:
        UserError: if it does not fit, or holds NaN or infinity.
    """
    weights = expert_weights(backbone_of(stages), source.folder)
    names = (*weights.pairs, *weights.whole) if isinstance(weights, Adapter) else tuple(weights)
    for name in names:
        checkpoints.check_finite(weights[name], f"{source.folder}: {name}")
    for pattern in ("*.safetensors", "*.json"):
        for file in source.folder.glob(pattern):
            if file.name != MANIFEST:  # of a cache that it is taken from
                shutil.copyfile(file, folder / file.name)
    (folder / "expert.json").write_text(json.dumps({"source": source.identity}, indent=1))
