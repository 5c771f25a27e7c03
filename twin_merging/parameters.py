"""What merges: the choice of parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from twin_merging.errors import UserError

VARIANCE = "running_var"
STATISTICS = ("running_mean", VARIANCE, "num_batches_tracked")
"""What a BatchNorm knows of the data that it has seen. It is no parameter: a merged model has statistics of its own."""


def is_statistic(name: str) -> bool:
    """Whether a tensor of a state dict is a BatchNorm's running statistic."""
    return name.rpartition(".")[2] in STATISTICS


def select(names: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """The names that some ``include`` pattern matches in full and no ``exclude`` pattern does, but for running statistics.

    Raises:
        UserError: if a pattern is no regular expression, or nothing is left.
    """
    names = [name for name in names if not is_statistic(name)]
    wanted, unwanted = compiled(include, "parameters.include"), compiled(exclude, "parameters.exclude")
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


def compiled(patterns: Sequence[str], key: str) -> list[re.Pattern[str]]:
    """Regular expressions, compiled.

    Raises:
        UserError: that names the config ``key``, if one is none.
    """
    expressions = []
    for pattern in patterns:
        try:
            expressions.append(re.compile(pattern))
        except re.error as error:
            raise UserError(f"not a regular expression ({error})", key=key, found=pattern) from error
    return expressions
