"""A stage: a function from artefacts to an artefact, and the key that what determines it makes."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from twin_merging.validation import to_plain

SPEED = ("batch_size", "plan", "kernels", "memory", "explain", "timing")
"""Options that change how fast it goes and not what comes out."""


@dataclass(frozen=True)
class Stage:
    """A function from artefacts to an artefact.

    Args:
        name: what kind of work it is; also the folder that its artefacts lie in.
        label: what it works on, for the user.
        options: plain JSON of exactly what determines the outcome besides the inputs.
        inputs: the stages whose artefacts it reads.
        load: imports and returns the function that computes it, so that importing is neither done for what is cached
            nor counted as the stage's time. The function writes the artefact's files into its first argument; its
            second is a folder that outlives a killed process, for work that can be resumed.
        version: raised whenever the stage's code changes what it computes.
    """

    name: str
    label: str
    options: Any
    inputs: tuple[Stage, ...]
    load: Callable[[], Callable[[Path, Path], None]] = field(compare=False, repr=False)
    version: int = 1

    @cached_property
    def key(self) -> str:
        """20 hex digits of the SHA-256 of everything that determines the artefact."""
        identity = [self.name, self.version, self.options, [stage.key for stage in self.inputs]]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:20]


def by(module: str, function: str, *arguments: Any) -> Callable[[], Callable[[Path, Path], None]]:
    """A function of a module beside this one, which is imported only when there is something to compute."""

    def load() -> Callable[[Path, Path], None]:
        loaded = importlib.import_module(f"twin_merging.pipeline.{module}")
        return partial(getattr(loaded, function), *arguments)

    return load


def determining(options: Any) -> dict[str, Any]:
    """A component's options but for those that change the speed and not the outcome."""
    return {key: value for key, value in to_plain(options).items() if key not in SPEED}


def upstream(stage: Stage) -> list[Stage]:
    """A stage and all that it depends on, each once, inputs first."""
    found: dict[str, Stage] = {}

    def visit(current: Stage) -> None:
        if current.key not in found:
            for inner in current.inputs:
                visit(inner)
            found[current.key] = current

    visit(stage)
    return list(found.values())
