"""What the stages of routing compute: what the router reads, the router, and w(x) of the exams' prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file
from torch import Tensor

from twin_merging import checkpoints
from twin_merging.backbones.causal_lm import CausalLMBackbone
from twin_merging.checkpoints import Checkpoint
from twin_merging.config import routers
from twin_merging.pipeline.language.read import (
    answering_size,
    backbone_of,
    examples_of,
    exams_of,
    shared_changes,
    tasks_of,
)
from twin_merging.routers.oracle import oracle_weights
from twin_merging.tasks.base import TEST
from twin_merging.tasks.generation import Request

if TYPE_CHECKING:
    from twin_merging.pipeline.language.stages import LanguageStages

SPARE = 16  # tokens: those of a text that is cut may be a few more than it was cut to
STATES, TOKENS, ROUTER = "states.safetensors", "tokens.json", "router.safetensors"


def states(stages: LanguageStages, split: str, layer: int, token: str, folder: Path, scratch: Path) -> None:
    """The shared model's token states of prompts, (rows, d) by task, and the tokens of each task's prompts."""
    backbone, asked = backbone_of(stages), _requests(stages, split)
    model = backbone.model_with(shared_changes(stages))
    together = [request for requests in asked.values() for request in requests]
    found = backbone.states(model, together, answering_size(stages), f"{split} prompts", layer, token)
    parts = found.split([len(requests) for requests in asked.values()])
    checkpoints.save(dict(zip(asked, parts, strict=True)), folder / STATES)
    lengths = {
        name: [len(ids) for ids in backbone.tokenize([each.prompt for each in mine])] for name, mine in asked.items()
    }
    (folder / TOKENS).write_text(json.dumps(lengths))


def router(stages: LanguageStages, folder: Path, scratch: Path) -> None:
    """Train the router on prompts of ``router.source`` and record its accuracy on those held out."""
    options = stages.run.router
    read = Checkpoint(stages.get(stages.states(options.source)).path(STATES))
    kind, features = routers[options.name].load(), [read[name] for name in stages.names]
    trained, report = kind.fit(options, features, tasks_of(stages), stages.run.seed)
    checkpoints.save(trained.state_dict(), folder / ROUTER)
    (folder / "router.json").write_text(json.dumps(report, indent=1))


def weights_of(stages: LanguageStages) -> dict[str, Tensor]:
    """w(x) of the prompts of each evaluated task's exams, (rows, T)."""
    if not stages.trains_router:
        counts = {name: sum(len(exam.questions) for exam in exams_of(stages, name)) for name in stages.evaluated}
        return {
            name: oracle_weights(index, counts[name], len(stages.names)) for index, name in enumerate(stages.evaluated)
        }
    trained = trained_router(stages)
    read = Checkpoint(stages.get(stages.states(TEST)).path(STATES))
    return {name: trained.weights(read[name]) for name in stages.evaluated}


def trained_router(stages: LanguageStages) -> Any:
    """The job's router, trained."""
    kind = routers[stages.run.router.name].load()
    return kind.of_state(load_file(stages.get(stages.router).path(ROUTER)))


def router_tokens(stages: LanguageStages) -> dict[str, list[int]]:
    """By task, the tokens of each prompt that went through the shared model for the router."""
    return stages.get(stages.states(stages.run.router.source)).json(TOKENS)


def _requests(stages: LanguageStages, split: str) -> dict[str, Sequence[Request]]:
    """Prompts by task, which nothing is generated for but in the exams."""
    if split == TEST:
        return {
            name: [request for exam in exams_of(stages, name) for request in exam.requests] for name in stages.evaluated
        }
    rows, backbone = stages.run.router.rows, backbone_of(stages)
    return {
        name: [Request(fitting(backbone, row.prompt), 1) for row in examples_of(stages, name, split, rows)]
        for name in stages.names
    }


def fitting(backbone: CausalLMBackbone, prompt: str) -> str:
    """A prompt to learn routing from, which HELM has not cut to the model's context: what has no room is cut off its end."""
    (ids,) = backbone.tokenize([prompt])
    if backbone.context is None or len(ids) < backbone.context:
        return prompt
    return backbone.tokenizer.decode(ids[: max(1, backbone.context - SPARE)], skip_special_tokens=True)
