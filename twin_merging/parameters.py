"""What merges: the choice of parameters, and task vectors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from twin_merging.errors import UserError


def select(names: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """The names that some ``include`` pattern matches in full and no ``exclude`` pattern does.

    Raises:
        UserError: if a pattern is no regular expression, or nothing is left.
    """
    names = list(names)
    wanted, unwanted = _compile(include, "parameters.include"), _compile(exclude, "parameters.exclude")
    chosen = [
        name
        for name in names
        if any(pattern.fullmatch(name) for pattern in wanted)
        and not any(pattern.fullmatch(name) for pattern in unwanted)
    ]
    if not chosen:
        raise UserError(
            "no parameter is left to merge", key="parameters", found=f"include {include}, exclude {exclude}",
            expected=f"patterns that match some of {len(names)} names such as {names[0]}",
        )  # fmt: skip
    return chosen


def task_vectors(base: Tensor, experts: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    """τ_t = θ_t − θ₀ of one parameter, stacked: shape (T, *base.shape), in float32 or wider (paper section 3.1)."""
    wide = torch.promote_types(base.dtype, torch.float32)
    stacked = torch.stack([expert[name].to(wide) for expert in experts])
    return stacked.sub_(base.to(wide))


def _compile(patterns: Sequence[str], key: str) -> list[re.Pattern[str]]:
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            raise UserError(f"not a regular expression ({error})", key=key, found=pattern) from error
    return compiled
