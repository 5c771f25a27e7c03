"""What merges: the choice of parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from twin_merging.errors import UserError


def select(names: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """The names that some ``include`` pattern matches in full and no ``exclude`` pattern does.

    Raises:
        UserError: if a pattern is no regular expression, or nothing is left.
    """
    names = list(names)
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
