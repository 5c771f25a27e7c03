"""What a job is called in tables and in progress."""

from __future__ import annotations

from typing import Any

from twin_merging.backbones.clip_source import is_place
from twin_merging.config import Clip, RunConfig
from twin_merging.validation import to_plain


def label_of(run: RunConfig) -> str:
    """The job's method with what it is given: ``twin (svd rank 16, oracle router)``."""
    method = run.merge_method
    if hasattr(method, "merge"):
        return f"{method.name} ({method.merge.name})"
    given = ["oracle router"] if run.router.name == "oracle" else []
    if hasattr(method, "shared"):
        shared = "" if method.shared.name == "task_arithmetic" else f"{method.shared.name} + "
        given = [shared + describe(run.sparsifier), *given, *_approximations(run.inference)]
    elif method.name != "emr":
        given = []
    return f"{method.name} ({', '.join(given)})" if given else method.name


def name_of(backbone: Any) -> str:
    """The pre-trained model, in tables and figures: ``asset:minilm``, ``ViT-B-32 openai``, ``ViT-B-32 random weights``."""
    if not isinstance(backbone, Clip) or (backbone.pretrained and is_place(backbone.pretrained)):
        return backbone.pretrained
    return f"{backbone.model} {backbone.pretrained or 'random weights'}"


def describe(sparsifier: Any) -> str:
    """A sparsifier in a few words: ``svd rank 16``."""
    settings = [
        f"{key} {value:g}"
        for key, value in to_plain(sparsifier).items()
        if key != "name" and isinstance(value, (int, float))
    ]
    return " ".join([sparsifier.name, *settings])


def _approximations(inference: Any) -> list[str]:
    """How the rows' own weights are not those of exact merging, in a few words each."""
    found = {
        f"{getattr(inference, 'groups', None)} groups": getattr(inference, "groups", None),
        f"top {inference.top_k}": inference.top_k,
        f"mass {inference.mass}": inference.mass,
        "lower blocks shared": inference.lower == "shared",
    }
    return [words for words, holds in found.items() if holds]
