"""What is checked before any work starts, beyond the configuration itself: assets, data, backbone, device, disk."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from twin_merging import assets
from twin_merging.backbones import timm_source
from twin_merging.backbones.clip_source import size_of
from twin_merging.backbones.sources import check_code, checkpoint_bytes, largest_rank, layers_of
from twin_merging.config import CausalLora, Clip, ImageClassifier, RunConfig, Timm
from twin_merging.errors import UserError, unknown
from twin_merging.experts.published import source_of
from twin_merging.pipeline.cache import Cache
from twin_merging.pipeline.data_stages import check_classes
from twin_merging.pipeline.graph import Graph, graph_of
from twin_merging.pipeline.language.stages import LanguageStages
from twin_merging.pipeline.stages import ENCODER, Stages

TRAINING_COPIES = 9  # the best, the last and the next checkpoint, each with two optimizer states


def check_inputs(jobs: list[RunConfig]) -> list[str]:
    """Fetch what is missing and prepare the data of all jobs, so that bad input is found before the first expert.

    Returns:
        The key of each job's result.

    Raises:
        UserError: for the first thing that would make a job fail.
    """
    seen: set[str] = set()
    keys = []
    for run in jobs:
        for key, folder in (("paths.outputs", run.paths.outputs), ("paths.cache", run.paths.cache)):
            _check_writable(key, Path(folder))
        stages = graph_of(run, Cache(Path(run.paths.cache), run.cache))
        if stages.run.device not in ("auto", "cpu"):
            _check_device(run.device)
        for name in stages.evaluated:
            needed = stages.task_source.assets(name)
            assets.fetch([asset for asset in needed if asset not in seen], stages.asset_folder)
            seen.update(needed)
        _check_names(stages)
        size = _size(stages)
        _check_rank(run, size.largest_rank)
        _check_layer(run, size.layers)
        keys.append(stages.result.key)
        if stages.cache.find(stages.result) is None:
            _check_disk(stages, size.bytes)
            for stage in stages.prepared:
                if stage.key not in seen and run.cache == "write":
                    stages.get(stage)
                seen.add(stage.key)
            if run.cache == "write" and isinstance(stages, Stages):
                _check_parameters(stages, stages.get(stages.base).path(ENCODER))
                if stages.is_twin:
                    _check_budget(stages)
                _check_tasks(stages)
            elif isinstance(stages, LanguageStages):
                _check_parameters(stages, stages.backbone_source.folder)
                _check_targets(stages)
                if stages.is_twin:
                    _check_budget(stages)
    return keys


class _Size(NamedTuple):
    """What a backbone's files say of it: layers and the largest rank of a matrix, where they do, and bytes."""

    layers: int | None
    largest_rank: int | None
    bytes: int


def _size(stages: Graph) -> _Size:
    """The backbone's size, once it is known that it runs without code that comes with it, or may run that code."""
    backbone, folder = stages.run.backbone, stages.backbone_source.folder
    if isinstance(backbone, Clip):
        return _Size(*size_of(backbone, folder))
    if isinstance(backbone, Timm):
        read = getattr(stages.run.router, "layer", -1) >= 0
        layers = timm_source.layers_to_read(folder, backbone.image_size) if read else None
        return _Size(layers, timm_source.largest_rank(folder), checkpoint_bytes(folder))
    if isinstance(backbone, ImageClassifier):
        timm_source.refuse_timms(folder)
    if not backbone.trust_remote_code:
        check_code(folder)
    return _Size(layers_of(folder), largest_rank(folder), checkpoint_bytes(folder))


def _check_names(stages: Graph) -> None:
    """Raise a UserError if a key that is set by task names one that there is not. Tasks that are left out may be named."""
    known = stages.task_source.known()
    named = {*known, *_published_tasks(stages.run.backbone)}
    by_task = {f"experts.{key}": getattr(stages.run.experts, key) for key in ("sources", "labels", "reference")}
    by_task |= {f"tasks.{key}": getattr(stages.run.tasks, key, None) for key in ("train_rows", "parts", "learn")}
    by_task["backbone.templates"] = getattr(stages.run.backbone, "templates", None)
    by_task |= {f"finetune.{key}": getattr(stages.run.finetune, key, None) for key in ("task_targets", "task_epochs")}
    for key, given in by_task.items():
        for name in given or {}:
            if name not in named:
                raise unknown(key, name, known, "task")


def _published_tasks(backbone: Any) -> Iterable[str]:
    """Tasks that an experiment may say something of though they are not here: those that CLIP was published with."""
    if not isinstance(backbone, Clip):
        return ()
    from twin_merging.backbones.zero_shot import published

    return published()


def _check_parameters(stages: Graph, weights: Path) -> None:
    from twin_merging.checkpoints import Checkpoint
    from twin_merging.parameters import select

    select(Checkpoint(weights), stages.run.parameters.include, stages.run.parameters.exclude)


def _check_targets(stages: LanguageStages) -> None:
    """Raise a UserError if an adapter that is trained here would change no matrix: peft says so only once training begins."""
    from twin_merging.mapped import MappedCheckpoint

    entries = MappedCheckpoint(stages.backbone_source.folder).entries
    matrices = {name.removesuffix(".weight") for name, entry in entries.items() if len(entry.shape) == 2}
    for name in stages.evaluated if stages.run.finetune.name == "causal_lora" else ():
        targets = stages.tuning_of(name).targets
        if targets == "all-linear" or source_of(stages.run.experts, name) is not None:
            continue
        if not _matches_any(targets, matrices):
            own = name in (stages.run.finetune.task_targets or {})
            endings = sorted({matrix.rpartition(".")[2] for matrix in matrices})
            raise UserError(
                "this matches no matrix of the backbone", key=f"finetune.task_targets.{name}" if own else "finetune.targets",
                found=targets, expected=f"a regular expression over whole module names, which end in {', '.join(endings)}",
                hint=f"as in '.*{endings[0]}'",
            )  # fmt: skip


def _matches_any(pattern: str, names: set[str]) -> bool:
    try:
        return any(re.fullmatch(pattern, name) for name in names)
    except re.error:
        return False


def _check_tasks(stages: Stages) -> None:
    from twin_merging.pipeline.artefacts import tasks_of

    check_classes(stages.method, {task.name: task.kind for task in tasks_of(stages)})


def _check_budget(stages: Graph) -> None:
    if isinstance(stages, Stages):
        from twin_merging.pipeline.exclusive import check_budget

        check_budget(stages)
    elif isinstance(stages, LanguageStages):
        from twin_merging.pipeline.language.merging import check_budget as check_language_budget

        check_language_budget(stages)


def _check_writable(key: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot be made ({error.strerror})", key=key, found=folder, expected="a folder to write in"
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError("cannot be written to", key=key, found=folder, expected="a folder to write in")


def _check_device(name: str) -> None:
    from twin_merging.pipeline.environment import resolve_device

    resolve_device(name)


def _check_disk(stages: Graph, one: int) -> None:
    """Refuse to start what cannot end: experts to come, ``one`` of so many bytes, and the checkpoints that training writes."""
    if stages.run.cache != "write":
        return
    missing = sum(stages.cache.find(expert) is None for expert in stages.experts)
    if isinstance(stages.run.finetune, CausalLora):  # whose checkpoints hold the adapter alone
        missing = 0
    needed = one * (missing + TRAINING_COPIES) if missing else one
    free = shutil.disk_usage(stages.cache.root).free
    if free < needed:
        raise UserError(
            "the disk has too little room for what this run would write", key="paths.cache",
            found=f"{free / 1e6:.0f} MB free at {stages.cache.root}", expected=f"about {needed / 1e6:.0f} MB",
            hint="free some space or set paths.cache to another disk",
        )  # fmt: skip


def _check_layer(run: RunConfig, layers: int | None) -> None:
    """Raise a UserError if ``router.layer`` is beyond the backbone's last."""
    layer = getattr(run.router, "layer", -1)
    if layers is not None and layer > layers:
        raise UserError(
            "this backbone has fewer layers", key="router.layer", found=layer, expected=f"-1 (the last) or 0 to {layers}",
            nearest=str(layers),
        )  # fmt: skip
    if layers is not None and layer == layers and getattr(run.inference, "lower", None) == "shared":
        raise UserError(
            "no block is above what this router reads", key="inference.lower", found=f"shared with router.layer={layer}",
            expected=f"shared with router.layer=0 to {layers - 1}, or mixed",
        )  # fmt: skip


def _check_rank(run: RunConfig, largest: int | None) -> None:
    """Raise a UserError if ``sparsifier.rank`` is more than any matrix of the backbone has."""
    rank = getattr(run.sparsifier, "rank", None)
    if rank is not None and largest is not None and rank > largest:
        raise UserError(
            "no matrix of this backbone has so high a rank", key="sparsifier.rank", found=rank, expected=f"1 to {largest}",
            nearest=str(largest), hint="sparsifier=none keeps everything",
        )  # fmt: skip
