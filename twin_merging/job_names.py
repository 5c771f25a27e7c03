"""What the folders of a sweep's jobs are called: a number, and what the job has that others have not."""

from __future__ import annotations

import re
from collections.abc import Sequence

from twin_merging.config import REGISTRIES

LONGEST = 120  # characters; file systems allow 255 bytes


def job_names(jobs: Sequence[Sequence[str]]) -> list[str]:
    """A name a job, unique by its number and readable by the overrides that differ: ``07-twin-rank=16-seed=1``.

    A group's option stands for itself; any other key is cut to the parts that tell it from the other keys.

    Args:
        jobs: the overrides of each job, such as ``merge_method=twin``, hydra's own left out.
    """
    given = [dict(_key_and_value(override) for override in overrides) for overrides in jobs]
    keys = list(dict.fromkeys(key for overrides in given for key in overrides))
    differing = [key for key in keys if len({overrides.get(key) for overrides in given}) > 1]
    if not differing:  # one job, or the same one again and again: its method says most
        differing = [key for key in keys if key == "merge_method"]
    short, digits = _shortened(differing), len(str(max(len(jobs) - 1, 0)))
    names = []
    for number, overrides in enumerate(given):
        parts = [_part(key, short[key], overrides[key]) for key in differing if key in overrides]
        names.append("-".join([f"{number:0{digits}d}", *(part for part in parts if part)])[:LONGEST])
    return names


def _key_and_value(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def _shortened(keys: Sequence[str]) -> dict[str, str]:
    """Each key's last parts, as many as it takes to tell it from the others."""
    parts = {key: re.split(r"[.@]", key) for key in keys}
    short = {}
    for key in keys:
        count = 1
        while count < len(parts[key]) and any(
            parts[other][-count:] == parts[key][-count:] for other in keys if other != key
        ):
            count += 1
        short[key] = ".".join(parts[key][-count:])
    return short


def _part(key: str, short: str, value: str) -> str:
    words = _plain(value)
    return words if key in REGISTRIES else f"{_plain(short)}={words}"


def _plain(text: str) -> str:
    """With nothing that a shell or a file system would take for more than a character."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")
