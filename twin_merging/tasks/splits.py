"""From a source's rows to disjoint train, validation and test splits: cleaned, cut and sampled by seed."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter

from twin_merging.config import Rows
from twin_merging.errors import UserError
from twin_merging.tasks.base import SPLITS, TEST, TRAIN, VALIDATION, RawTask, Split, Task
from twin_merging.tasks.checks import check_not_empty, check_rows

SHARES = {TEST: 0.2, VALIDATION: 0.1}  # of the training rows, where the source and the configuration name no number


def prepare(
    raw: RawTask, rows: Rows, limit: int | None, seed: int, order: str = "seeded", held_out: int | None = None
) -> Task:
    """Clean a source's rows, cut the splits it lacks from train, and sample each down to what is asked.

    Two texts are the same if they agree after NFKC, case folding and single spacing. A text that carries two labels is
    dropped everywhere, a repeat inside a split is dropped, and of a text in two splits test keeps it before validation
    and validation before train. A missing test split (20 % of train, or ``rows.test``), then a missing validation split
    (10 %, or ``rows.validation``) is cut from train, never more than half of it. ``limit`` samples the finished splits
    down and moves no row from one to another.

    Args:
        order: of a split's rows, of which the first are taken: ``seeded``, which spreads each class evenly, or ``source``.
        held_out: the most that a share of train is as a validation split.

    Raises:
        UserError: for an unusable row, an empty split, or a text that is in two splits.
    """
    if TRAIN not in raw.splits:
        raise UserError(
            "the source has no train split", key=f"task {raw.name}", found=", ".join(raw.splits) or "no split"
        )
    check_rows(raw)
    splits, dropped = _clean(raw.splits)
    origin = dict(raw.provenance["splits"])
    for name in (TEST, VALIDATION):
        if name not in splits:
            share = max(1, round(SHARES[name] * len(splits[TRAIN])))
            count = getattr(rows, name) or (min(share, held_out or share) if name == VALIDATION else share)
            splits[name], splits[TRAIN] = _cut(raw, splits[TRAIN], count, f"{seed}/{raw.name}/{name}")
            origin[name] = f"cut from train: {origin[TRAIN]}"
    most = {name: _most(getattr(rows, name), limit) for name in SPLITS}
    if order == "source":
        used = {name: splits[name].take(list(range(len(splits[name])))[: most[name]]) for name in SPLITS}
    else:
        used = {name: _sample(raw, splits[name], most[name], seed, name) for name in SPLITS}
    for name in SPLITS:
        check_not_empty(raw.name, name, used[name], origin[name])
    provenance = {
        **raw.provenance,
        "splits": origin,
        "split_seed": seed,
        "order": order,
        "rows": {
            "source": _counts(raw.splits),
            "dropped": dropped,
            "available": _counts(splits),
            "used": _counts(used),
        },
        "fingerprints": {name: split.fingerprint() for name, split in used.items()},
    }
    task = Task(raw.name, raw.kind, raw.class_names, raw.label_range, raw.metric, used, provenance, raw.images)
    check_disjoint(task)
    return task


def check_disjoint(task: Task) -> None:
    """Compare the splits by content.

    Raises:
        UserError: if a text is in two splits, naming the task, the splits and the text.
    """
    seen: dict[tuple[str, ...], str] = {}
    for name in SPLITS:
        for texts in task.splits[name].texts:
            if seen.setdefault(normalise(texts), name) != name:
                raise UserError(
                    "the same text is in two splits",
                    key=f"task {task.name}",
                    found=f"{' | '.join(texts)[:80]!r} in {seen[normalise(texts)]} and {name}",
                    expected="disjoint splits",
                )


def normalise(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The form in which rows are compared: NFKC, folded case, single spaces; a pair in its order."""
    return tuple(" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in texts)


def _clean(splits: dict[str, Split]) -> tuple[dict[str, Split], dict[str, dict[str, int]]]:
    """Drop contradictions and repeats; returns the splits and, by split and reason, how many rows went."""
    keys = {name: [normalise(texts) for texts in split.texts] for name, split in splits.items()}
    labels: dict[tuple[str, ...], set[float]] = {}
    for name, split in splits.items():
        for key, label in zip(keys[name], split.labels, strict=True):
            labels.setdefault(key, set()).add(label)
    owner: dict[tuple[str, ...], str] = {}
    cleaned, dropped = {}, {}
    for name in (name for name in (TEST, VALIDATION, TRAIN) if name in splits):
        kept, reasons = [], Counter({"two labels": 0, "repeated": 0, "in another split": 0})
        for row, key in enumerate(keys[name]):
            if len(labels[key]) > 1:
                reasons["two labels"] += 1
            elif key in owner:
                reasons["repeated" if owner[key] == name else "in another split"] += 1
            else:
                owner[key] = name
                kept.append(row)
        cleaned[name], dropped[name] = splits[name].take(kept), dict(reasons)
    return cleaned, dropped


def _cut(raw: RawTask, train: Split, count: int, seed: str) -> tuple[Split, Split]:
    """A stratified cut of ``count`` rows, at most half, and the rest in its order."""
    chosen = _spread(raw, train, seed)[: min(count, len(train) // 2)]
    rest = sorted(set(range(len(train))) - set(chosen))
    return train.take(chosen), train.take(rest)


def _sample(raw: RawTask, split: Split, most: int | None, seed: int, name: str) -> Split:
    return split.take(_spread(raw, split, f"{seed}/{raw.name}/{name}/order")[:most])


def _counts(splits: dict[str, Split]) -> dict[str, int]:
    return {name: len(split) for name, split in splits.items()}


def _most(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _spread(raw: RawTask, split: Split, seed: str) -> list[int]:
    """All rows in a seeded order whose every prefix holds each class in its share, up to one row.

    The j-th of a class's n shuffled rows comes at (j + 1/2)/n of the way.
    """
    groups: dict[float, list[int]] = {}
    for row, label in enumerate(split.labels):
        groups.setdefault(label if raw.class_names else 0, []).append(row)
    generator = random.Random(seed)
    placed = []
    for label in sorted(groups):
        generator.shuffle(groups[label])
        placed += [((j + 0.5) / len(groups[label]), generator.random(), row) for j, row in enumerate(groups[label])]
    return [row for _, _, row in sorted(placed)]
