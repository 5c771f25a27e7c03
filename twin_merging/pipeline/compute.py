"""What each stage computes: reads its inputs' artefacts, calls the pure code, writes files into its folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from twin_merging import checkpoints, parameters
from twin_merging.backbones.sources import Source, read_config
from twin_merging.checkpoints import Checkpoint
from twin_merging.config import finetunings, inferences, merge_methods, routers, sparsifiers
from twin_merging.errors import UserError, unknown
from twin_merging.evaluation.heads import oracle_answers
from twin_merging.evaluation.metrics import metrics
from twin_merging.evaluation.scoring import average_normalized, normalized
from twin_merging.evaluation.selection import choose, refuse_test
from twin_merging.merging.apply import merge, modularize
from twin_merging.pipeline.artefacts import (
    ENCODER,
    FEATURES,
    backbone_of,
    base_weights,
    encoder_with,
    exclusive_of,
    expert_weights,
    features_of,
    heads_of,
    read_all,
    routing_weights,
    task_of,
    tasks_of,
    tokens_of,
    weights_at,
)
from twin_merging.pipeline.stage import Stage
from twin_merging.pipeline.stages import Stages
from twin_merging.progress import track
from twin_merging.sparsifiers.svd import Factors
from twin_merging.tasks.base import TEST, VALIDATION
from twin_merging.tasks.splits import prepare

# --- data, base, experts ----------------------------------------------------------------------------------------------


def data(stages: Stages, name: str, folder: Path, scratch: Path) -> None:
    """Clean, split and sample a task."""
    raw = stages.task_source.load(name)
    if raw.metric not in metrics:
        raise unknown(f"metric of task {name}", raw.metric, metrics, "metric")
    prepare(raw, stages.run.tasks.rows, stages.run.tasks.limit, stages.run.tasks.split_seed).save(folder)


def base(stages: Stages, folder: Path, scratch: Path) -> None:
    """θ₀ under the names that experts use."""
    backbone = backbone_of(stages)
    model = backbone.load(backbone.folder, num_labels=2, new_head=True)
    checkpoints.save(backbone.encoder(model).state_dict(), folder / ENCODER)
    (folder / "base.json").write_text(
        json.dumps({"prefix": model.base_model_prefix, "model_type": model.config.model_type})
    )


def expert(stages: Stages, name: str, folder: Path, scratch: Path) -> None:
    """Fine-tune on one task."""
    fine_tune = finetunings[stages.run.finetune.name].load()
    task = task_of(stages, name)
    refuse_test(f"epoch of {name}", [task], VALIDATION)
    fine_tune(backbone_of(stages), task, stages.run.finetune, stages.run.seed, folder, scratch)


def imported_expert(stages: Stages, name: str, source: Source, folder: Path, scratch: Path) -> None:
    """Load a published expert, check that it is this backbone's, and save it as our own are saved."""
    from twin_merging.experts.fine_tuning import save_expert

    backbone, task = backbone_of(stages), task_of(stages, name)
    known = stages.get(stages.base).json("base.json")
    found = read_config(source.folder).get("model_type")
    if found != known["model_type"]:
        raise UserError(
            "an expert of another architecture than the base's", key=str(source.folder), found=found, expected=known["model_type"],
            hint="experts.source and backbone.pretrained must be of one architecture",
        )  # fmt: skip
    model = backbone.load(source.folder, task.num_labels, task.kind == "regression")
    encoder = backbone.encoder(model).state_dict()
    checkpoints.check(encoder, read_all(base_weights(stages)), str(source.folder))
    backbone.check_head_reads_first_token(model)
    save_expert(backbone, model, task, {"source": source.identity}, folder)


# --- merging ----------------------------------------------------------------------------------------------------------


def merged(stages: Stages, method: Any, folder: Path, scratch: Path) -> None:
    """A static method's encoder; its λ chosen on validation where a grid is given."""
    choices = []
    if getattr(method, "grid", None):
        choice = _chosen_scaling(stages, method)
        choices.append(choice)
        method = replace(method, scaling=choice["chosen"])
    checkpoints.save(_merge(stages, method), folder / ENCODER)
    (folder / "choices.json").write_text(json.dumps(choices))


def exclusive(stages: Stages, folder: Path, scratch: Path) -> None:
    """Compressed v_t of all tasks: ``NAME.U``, ``NAME.S`` and ``NAME.V``, or ``NAME`` where it is kept whole."""
    start, experts = base_weights(stages), expert_weights(stages)
    shared = Checkpoint(stages.get(stages.shared).path(ENCODER))
    selected = parameters.select(start, stages.run.parameters.include, stages.run.parameters.exclude)
    sparsify = sparsifiers[stages.run.sparsifier.name].load()
    tensors: dict[str, Tensor] = {}
    parts = modularize(sparsify, stages.run.sparsifier, start, experts, shared, selected)
    for name, delta in track(parts, "compress exclusive knowledge", len(selected), "tensors"):
        if isinstance(delta, Factors):
            tensors |= {f"{name}.{field}": factor for field, factor in delta._asdict().items()}
        else:
            tensors[name] = delta
    checkpoints.save(tensors, folder / "exclusive.safetensors")


def _merge(stages: Stages, method: Any) -> dict[str, Tensor]:
    start, experts = base_weights(stages), expert_weights(stages)
    selected = parameters.select(start, stages.run.parameters.include, stages.run.parameters.exclude)
    tensors = merge(merge_methods[method.name].load(), method, start, experts, selected)
    return dict(track(tensors, f"merge by {method.name}", len(start), "tensors"))


def _chosen_scaling(stages: Stages, method: Any) -> dict[str, Any]:
    """The λ with the best average on validation rows, each task's score normalized by its expert's there."""
    tasks = tasks_of(stages)
    refuse_test("scaling", tasks, VALIDATION)
    references = [max(_own_validation(stages, index).values()) for index in range(len(tasks))]
    heads, backbone, scores = heads_of(stages), backbone_of(stages), {}
    tokens = [tokens_of(stages, task, VALIDATION) for task in tasks]
    for scaling in method.grid:
        encoder = encoder_with(stages, _merge(stages, replace(method, scaling=scaling)))
        ratios = []
        for task, rows, reference in zip(tasks, tokens, references, strict=True):
            features = backbone.encode(encoder, rows, stages.run.evaluation.batch_size, f"λ {scaling:g}: {task.name}")
            ratios.append(
                normalized(
                    metrics[task.metric](oracle_answers(task, features, heads), task.splits[VALIDATION].labels),
                    reference,
                )
            )
        scores[scaling] = average_normalized(ratios) or 0.0
    return choose("scaling", scores, tasks, VALIDATION)


def _own_validation(stages: Stages, index: int) -> dict[str, float]:
    """An expert's validation score by epoch, or of its published weights."""
    record = stages.get(stages.experts[index]).json("expert.json")
    if "choice" in record:
        return record["choice"]["scores"]
    task, backbone = tasks_of(stages)[index], backbone_of(stages)
    encoder = encoder_with(stages, read_all(expert_weights(stages)[index]))
    features = backbone.encode(
        encoder, tokens_of(stages, task, VALIDATION), stages.run.evaluation.batch_size, f"{task.name} expert"
    )
    return {
        "published": metrics[task.metric](
            oracle_answers(task, features, heads_of(stages)), task.splits[VALIDATION].labels
        )
    }


# --- features, router, dynamic merging --------------------------------------------------------------------------------


def encoded(
    stages: Stages, encoder: Stage, split: str, names: list[str], label: str, layer: int, folder: Path, scratch: Path
) -> None:
    """Features of one split of some tasks: ``TASK.first``, ``TASK.pooled``, ``TASK.mean``."""
    artefact, backbone = stages.get(encoder), backbone_of(stages)
    weights = read_all(
        weights_at(stages, artefact.path(ENCODER) if ENCODER in artefact.files else artefact.path(checkpoints.SINGLE))
    )
    model = encoder_with(stages, weights)
    tensors: dict[str, Tensor] = {}
    for name in names:
        tokens = tokens_of(stages, task_of(stages, name), split)
        features = backbone.encode(model, tokens, stages.run.evaluation.batch_size, f"{label}: {name}", layer=layer)
        tensors |= {f"{name}.{key}": value for key, value in features.items()}
    checkpoints.save(tensors, folder / FEATURES)


def router(stages: Stages, folder: Path, scratch: Path) -> None:
    """Train the router on validation rows and record its accuracy on those held out."""
    tasks = tasks_of(stages)
    features = features_of(stages, stages.encoded_by_shared(VALIDATION), tasks)
    kind = routers[stages.run.router.name].load()
    means = [features[task.name]["mean"] for task in tasks]
    trained, report = kind.fit(stages.run.router, means, tasks, stages.run.seed)
    checkpoints.save(trained.state_dict(), folder / "router.safetensors")
    (folder / "router.json").write_text(json.dumps(report, indent=1))


def dynamic(stages: Stages, folder: Path, scratch: Path) -> None:
    """Features of test rows, each under its own merged weights."""
    tasks, backbone = tasks_of(stages), backbone_of(stages)
    shared = encoder_with(stages, read_all(Checkpoint(stages.get(stages.shared).path(ENCODER))))
    model = inferences[stages.run.inference.name].load()(shared, exclusive_of(stages))
    weights = routing_weights(stages, tasks)
    tensors: dict[str, Tensor] = {}
    for task in tasks:
        tokens = tokens_of(stages, task, TEST)
        features = backbone.encode(
            model, tokens, stages.run.inference.batch_size, f"twin: {task.name}", weights[task.name]
        )
        tensors |= {f"{task.name}.{key}": value for key, value in features.items()}
    checkpoints.save(tensors, folder / FEATURES)
