"""The last stage: scores, bytes, costs, routing, and every choice that led there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twin_merging.checkpoints import SINGLE
from twin_merging.evaluation.exams import Marks, task_interval, task_score
from twin_merging.evaluation.scoring import averages, normalized
from twin_merging.pipeline.cache import Artefact
from twin_merging.pipeline.costs import making, size_of
from twin_merging.pipeline.language.answers import TWIN, marks_of
from twin_merging.pipeline.language.read import CHOICES, exams_of, provenance_of
from twin_merging.pipeline.language.routing import ROUTER, router_tokens, weights_of
from twin_merging.pipeline.result import routing_record, spent_stages
from twin_merging.pipeline.stage import Stage
from twin_merging.routers.holdout import held_out
from twin_merging.standalone.sources import ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from twin_merging.pipeline.language.stages import LanguageStages

REFERENCE = "fine-tuned expert of each task, same prompts"


def result(stages: LanguageStages, folder: Path, scratch: Path) -> None:
    """The part of results.json that does not depend on when and where the job ran."""
    marks, references = _all_marks(stages, stages.marked), _all_marks(stages, stages.references)
    entries = {name: _entry(stages, name, marks[name], references[name]) for name in stages.evaluated}
    sizes = stored(stages)
    costs = {
        "stored": sizes,
        "training_tokens": training_tokens(stages),
        "making": making(stages, _made(stages)),
    }
    record = {
        **averages({name: entries[name] for name in stages.names}), "reference": REFERENCE, "tasks": entries,
        "choices": _choices(stages), "costs": costs,
        "bytes_stored": sum(part["bytes"] for part in sizes.values()), "routing": _routing(stages),
        "data": {name: provenance_of(stages, name) for name in stages.evaluated}, "checkpoints": _checkpoints(stages),
        **spent_stages(stages, [*stages.marked, *stages.routing]),
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(record, indent=1))


def stored(stages: LanguageStages) -> dict[str, dict[str, int]]:
    """``parameters`` and ``bytes`` on disk of each part that answering needs; there are no heads.

    The ``encoder`` is one whole model; of fine-tuned experts θ₀ and all their adapters, or T whole models; of joint training
    θ₀ and one adapter, or one whole model.
    """
    base = stages.get(stages.base).json("base.json")
    sizes = {"encoder": (base["parameters"], base["bytes"]), "exclusive": (0, 0), "router": (0, 0), "heads": (0, 0)}
    if stages.is_ensemble or stages.is_joint:
        sizes["encoder"] = _experts_size(stages, sizes["encoder"])
    if stages.is_twin:
        sizes["exclusive"] = size_of(stages.get(stages.exclusive), "exclusive.safetensors")
    if stages.trains_router:
        sizes["router"] = size_of(stages.get(stages.router), ROUTER)
    return {part: {"parameters": parameters, "bytes": size} for part, (parameters, size) in sizes.items()}


def training_tokens(stages: LanguageStages) -> dict[str, int | None]:
    """Tokens that went through a model to train the experts, None where one is imported, all tasks at once, and the router."""
    by_expert = [stages.get(stage).json("expert.json").get("train_tokens") for stage in stages.experts]
    router, together = 0, stages.get(stages.joint).json("expert.json")["train_tokens"] if stages.is_joint else 0
    if stages.trains_router:
        holdout = stages.run.router.holdout
        router = sum(sum(rows[held_out(len(rows), None, holdout) :]) for rows in router_tokens(stages).values())
    return {
        "experts": None if None in by_expert else sum(by_expert), "multitask": together, "router": router, "learned": 0,
        "after_experts": together + router,
    }  # fmt: skip


def _all_marks(stages: LanguageStages, marked: list[Stage]) -> dict[str, list[Marks]]:
    return {name: parts for stage in marked for name, parts in marks_of(stages, stage).items()}


def _entry(stages: LanguageStages, name: str, marks: list[Marks], reference: list[Marks]) -> dict[str, Any]:
    """One task's entry of results.json, by its main metric; ``scores`` has all of them, ``parts`` each part's."""
    exams = exams_of(stages, name)
    metric = exams[0].metrics[0]
    raw, best = task_score(marks, metric), task_score(reference, metric)
    entry = {
        "metric": metric, "raw": raw, "reference": best, "normalized": normalized(raw, best),
        "rows": sum(len(exam.questions) for exam in exams), "confidence_interval": list(task_interval(marks, metric)),
        "scores": {each: task_score(marks, each) for each in exams[0].metrics},
        "parts": {exam.part: part.scores[metric] for exam, part in zip(exams, marks, strict=True) if exam.part},
        "judge": stages.run.evaluation.name,
    }  # fmt: skip
    return {**entry, "unseen": "expert"} if name in stages.unseen else entry


def _routing(stages: LanguageStages) -> dict[str, Any] | None:
    if not stages.is_twin:
        return None
    dropped = stages.get(stages.answered).json(TWIN)["dropped"]
    return routing_record(stages, stages.trains_router, weights_of(stages), dropped)


def _learned(stages: LanguageStages) -> list[Stage]:
    """What was fine-tuned: the experts, and the one of all tasks."""
    return [*stages.experts, *([stages.joint] if stages.is_joint else [])]


def _made(stages: LanguageStages) -> list[Stage]:
    made = [stages.joint if stages.is_joint else stages.shared, *([stages.exclusive] if stages.is_twin else [])]
    return made + ([stages.router] if stages.trains_router else [])


def _choices(stages: LanguageStages) -> list[dict[str, Any]]:
    """Every choice that went into the result, with the split and the scores it was made on."""
    records = [stages.get(stage).json("expert.json") for stage in _learned(stages)]
    choices = [record["choice"] for record in records if "choice" in record]
    if stages.shared is not stages.base:
        choices += stages.get(stages.shared).json(CHOICES)
    return choices + (stages.get(stages.router).json("router.json")["choices"] if stages.trains_router else [])


def _experts_size(stages: LanguageStages, base: tuple[int, int]) -> tuple[int, int]:
    sizes = []
    trained = [stages.joint] if stages.is_joint else stages.experts
    for artefact in map(stages.get, trained):
        each = [size_of(artefact, name) for name in _weight_files(artefact)]
        sizes.append(tuple(map(sum, zip(*each, strict=True))))
    if all(ADAPTER_WEIGHTS in stages.get(stage).files for stage in trained):
        sizes.append(base)
    parameters, size = map(sum, zip(*sizes, strict=True))
    return parameters, size


def _weight_files(artefact: Artefact) -> list[str]:
    return [name for name in artefact.files if name.endswith(".safetensors")]


def _checkpoints(stages: LanguageStages) -> dict[str, Any]:
    """What θ₀ is, and the SHA-256 of each expert's weights."""
    hashes: dict[str, Any] = {"base": stages.backbone_source.identity}
    for artefact in map(stages.get, _learned(stages)):
        for name in _weight_files(artefact):
            which = f"expert {artefact.label}" + ("" if name in (SINGLE, ADAPTER_WEIGHTS) else f", {name}")
            hashes[which] = artefact.files[name]["sha256"]
    return hashes
