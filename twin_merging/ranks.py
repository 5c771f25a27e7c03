"""This process among those that train one model together."""

from __future__ import annotations

import os

WORLD, RANK, LOCAL_RANK = "WORLD_SIZE", "RANK", "LOCAL_RANK"
OURS = "TWIN_PROCESSES"
"""Set where ``experts.processes`` has launched: a cluster may set ranks of its own for a run of one process."""


def count() -> int:
    """How many processes train together."""
    return int(os.environ.get(WORLD, "1")) if OURS in os.environ else 1


def is_spread() -> bool:
    """Whether the model that learns is going to be spread over processes, by FSDP or DeepSpeed."""
    return OURS in os.environ and any(
        os.environ.get(f"ACCELERATE_USE_{kind}") == "true" for kind in ("FSDP", "DEEPSPEED")
    )


def is_first() -> bool:
    """Whether this process writes what they all have learned."""
    return OURS not in os.environ or os.environ.get(RANK, "0") == "0"
