"""A router's file, ``router.safetensors``: the names of its tensors tell which router it is."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from twin_merging.errors import UserError
from twin_merging.routers.mlp import MlpRouter
from twin_merging.routers.tfidf import TfidfRouter

KINDS: dict[str, type[MlpRouter] | type[TfidfRouter]] = {"layers.0.weight": MlpRouter, "idf": TfidfRouter}
"""By a tensor that a router's file has and that of no other kind."""


def read_router(file: Path) -> MlpRouter | TfidfRouter:
    """The router of a file that ``checkpoints.save(router.state_dict(), file)`` wrote.

    Raises:
        UserError: if it is none.
    """
    state = load_file(file)
    for name, kind in KINDS.items():
        if name in state:
            return kind.of_state(state)
    raise UserError("not a router", key=str(file), found=", ".join(sorted(state)[:3]), expected=" or ".join(KINDS))
