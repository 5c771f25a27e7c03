"""Merging for its own sake: models in, a model out, without tasks, data or fine-tuning."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "load_twin":  # only here, since the plain way to a merged model loads no transformers
        from twin_merging.standalone.twin import load_twin

        return load_twin
    raise AttributeError(name)
