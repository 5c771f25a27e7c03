"""What experts of the generative suite learn from: rows that are evaluated nowhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twin_merging.checksums import sha256_of
from twin_merging.errors import UserError, unknown
from twin_merging.evaluation.helm.tasks import ARTICLE_WORDS
from twin_merging.tasks.generation import Example
from twin_merging.tasks.tables import read_columns

DOLLY = "dolly"
DOLLY_FILES = ("databricks-dolly-15k.jsonl", "dolly_sample.jsonl")
DOLLY_COLUMNS = ("instruction", "context", "response")
TRAINED_SPLITS = {"mmlu": ("train", "valid")}  # HELM evaluates MMLU's test alone; elsewhere its train is what is free
LICENCES = {
    "mmlu": "MIT", "truthful_qa": "Apache-2.0", "bbq": "CC BY 4.0", "gsm8k": "MIT", "dolly": "CC BY-SA 3.0",
    "synthetic_reasoning": "Apache-2.0",
    "cnn_dm": "articles of CNN and Daily Mail: research only", "xsum": "articles of the BBC: research only",
}  # fmt: skip
VALIDATION_SHARE, MOST_VALIDATION = 0.1, 1000


@dataclass(frozen=True)
class LearningRows:
    """Rows for an expert and for the router, disjoint from each other and from every evaluated row.

    Args:
        train: what an expert is fine-tuned on.
        validation: a tenth of the groups, at most 1,000 rows: for the router and for choices.
        provenance: plain JSON: source, licence, files by hash, how many rows were left out and why, what is disjoint.
    """

    train: list[Example]
    validation: list[Example]
    provenance: dict[str, Any]


def learning_rows(
    source: str, parts: Sequence[str], data: Path, benchmark: Path, seed: int = 0, words: int = ARTICLE_WORDS
) -> LearningRows:
    """The rows of a task that an expert may learn from, worded as HELM asks them but without solved rows in front.

    No row of HELM's evaluated split is among them, of whichever part and however few of them are evaluated; nor is one of
    the same group as such a row (``evaluation.helm.rows.read_rows``): the same question, the same article, or, for BBQ,
    the same context, although HELM itself shares out BBQ's rows one by one. What is left of HELM's training rows is used,
    and of MMLU dev and val. Train and validation are cut by group too. HELM also shows training rows in its prompts.

    ``dolly`` is an expert for MMLU (paper, section 4): instructions, but those that are a test question of MMLU.

    Args:
        source: a task of the suite, or ``dolly``.
        parts: subjects or categories; none: all whose files are in ``data``.
        benchmark: HELM's folder, of this process alone.
        seed: of which groups are validation, and of the order.
        words: of an article, at most.

    Raises:
        UserError: for an unknown source, a missing file or column, or if no row is left.
    """
    from twin_merging.evaluation.helm.files import known_parts, source_files
    from twin_merging.evaluation.helm.rows import letters, read_rows
    from twin_merging.evaluation.helm.tasks import TASKS

    if source not in TASKS and source != DOLLY:
        raise unknown("tasks.names", source, [*TASKS, DOLLY], "source of training rows")
    task = "mmlu" if source == DOLLY else source
    known = known_parts(task, data)
    chosen = () if source == DOLLY else tuple(parts) or known
    rows = {part: read_rows(task, part, data, benchmark, words) for part in dict.fromkeys((*chosen, *known))}
    evaluated = {row.group for part in rows.values() for row in part if row.split == TASKS[task].split}
    if source == DOLLY:
        path = dolly_file(data)
        files, found = {DOLLY: path}, [(letters(asked), example) for asked, example in _dolly_rows(path)]
    else:
        files = {
            f"{part} {name}".strip(): path for part in chosen for name, path in source_files(task, part, data).items()
        }
        splits = TRAINED_SPLITS.get(task, ("train",))
        found = [(row.group, row.example) for part in chosen for row in rows[part] if row.split in splits]
    free = [row for row in found if row[0] not in evaluated]
    if len({group for group, _ in free}) < 2:
        raise UserError(
            "too few rows are left to learn from", key=f"tasks.names, {source}", found=f"{len(free)} of {len(found)} rows",
            expected="rows of two groups or more that share nothing with an evaluated row",
            hint=f"add parts: {', '.join(known)}" if TASKS[task].parts else None,
        )  # fmt: skip
    train, validation = _cut(free, f"{seed}/{source}")
    provenance = {
        "source": "HELM's generator" if TASKS[task].generated else f"local files, generative/{source}", "licence": LICENCES[source], "parts": list(chosen), "seed": seed,
        "files": {name: sha256_of(path) for name, path in files.items()},
        "rows": {"found": len(found), "left_out": len(found) - len(free), "train": len(train), "validation": len(validation)},
        "disjoint": f"by group from all {len(evaluated)} groups of HELM's {TASKS[task].split} rows of {task}",
    }  # fmt: skip
    return LearningRows(train, validation, provenance)


def learning_identity(source: str, parts: Sequence[str], data: Path) -> dict[str, Any]:
    """What determines ``learning_rows``, its seed aside: the parts, and the files of all parts, as none may be learned from
    whose test asks the same.

    Raises:
        UserError: for an unknown source or a missing file.
    """
    from twin_merging.evaluation.helm.files import identity

    dolly = {DOLLY: sha256_of(dolly_file(data))} if source == DOLLY else {}
    rows = identity("mmlu" if source == DOLLY else source, (), data)
    return {"source": source, "parts": list(parts), "reader": 1, "dolly": dolly, "rows": rows}


def _cut(rows: list[tuple[str, Example]], seed: str) -> tuple[list[Example], list[Example]]:
    """Whole groups to validation, in an order that depends on seed and content alone; repeats are dropped."""

    def place(text: str) -> str:
        return hashlib.sha256(f"{seed}/{text}".encode()).hexdigest()

    groups: dict[str, list[Example]] = {}
    for group, example in dict.fromkeys(rows):
        groups.setdefault(group, []).append(example)
    order = sorted(groups, key=place)
    count = max(1, int(VALIDATION_SHARE * len(order)))
    validation = [example for group in order[:count] for example in groups[group]][:MOST_VALIDATION]
    train = [example for group in order[count:] for example in groups[group]]
    # siblings apart: a batch of one context's rows would be a poor sample
    return sorted(train, key=lambda example: place(example.prompt)), validation


def dolly_file(data: Path) -> Path:
    """Dolly's rows in a folder of data.

    Raises:
        UserError: if they are not there.
    """
    folder = data / "generative" / DOLLY
    for name in DOLLY_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        "the file of dolly is missing", key="paths.data", found=data, expected=str(folder / DOLLY_FILES[0]),
        hint=f"a file of the columns {', '.join(DOLLY_COLUMNS)}",
    )  # fmt: skip


def _dolly_rows(path: Path) -> list[tuple[str, Example]]:
    """Each instruction, and it in the nouns of HELM's prompts; the passage, where there is one, before the question."""
    rows = []
    for instruction, context, response in zip(*read_columns(path, DOLLY_COLUMNS), strict=True):
        passage = f"Passage: {context.strip()}\n" if context.strip() else ""
        prompt = f"{passage}Question: {instruction.strip()}\nAnswer:"
        rows.append((instruction, Example(prompt, f" {response.strip()}")))
    return rows
