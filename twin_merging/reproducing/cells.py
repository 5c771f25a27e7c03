"""From an item, a suite and seeds to the jobs of run.py that fill it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twin_merging.config import RunConfig
from twin_merging.errors import UserError, unknown
from twin_merging.pipeline.labels import name_of
from twin_merging.registry import CONFIGS
from twin_merging.reproducing.item import Item, Row

# What says where and how fast a job runs, or where its experts come from: the paper's numbers can still be held against it.
NEUTRAL = ("paths", "tracker", "cache", "device", "precision", "seed", "plugins", "experts")
NEUTRAL_KEYS = (
    "backbone.trust_remote_code",
    "backbone.device_map",
    "finetune.micro_batch",
    "finetune.checkpointing",
    "finetune.workers",
)
EXPERT_SEED = 0
"""Experts are fine-tuned once; seeds repeat what comes after them, unless ``experts.seed=null`` is given."""


@dataclass(frozen=True)
class Cell:
    """One job: a row of the item with one seed."""

    row: Row
    seed: int
    overrides: tuple[str, ...]
    run: RunConfig

    @property
    def name(self) -> str:
        return f"{self.row.head}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """All jobs of an item on one suite.

    Args:
        suite: the experiment.
        given: the user's own overrides.
        comparable: whether the paper's numbers can be held against these.
        tasks: the suite's, in the item's order.
    """

    item: Item
    suite: str
    given: tuple[str, ...]
    comparable: bool
    tasks: tuple[str, ...]
    cells: tuple[Cell, ...]

    @property
    def rows(self) -> list[Row]:
        """The rows that this suite has: those of more tasks than it has are left out."""
        return list({cell.row.head: cell.row for cell in self.cells}.values())

    @property
    def backbone(self) -> str:
        return name_of(self.cells[0].run.backbone)

    @property
    def command(self) -> str:
        """The command line that computes it, seeds left out."""
        suite = [] if self.suite == self.item.suite else ["--suite", self.suite]
        return shlex.join(["python", "reproduce.py", self.item.name, *suite, *self.given])

    @property
    def folder(self) -> Path:
        """outputs/reproduce/ITEM/SUITE"""
        return Path(self.cells[0].run.paths.outputs) / "reproduce" / self.item.name / self.suite


def plan_item(item: Item, suite: str | None, given: Sequence[str], seeds: Sequence[int] | None) -> Plan:
    """Compose and check every job.

    Args:
        suite: an experiment of configs/exp; None: the item's own.
        given: overrides of every job; what a row sets itself stays as it is.
        seeds: None: the item's own.

    Raises:
        UserError: for a suite, key or value that is unknown or wrong.
    """
    from twin_merging.compose import compose_each

    suite = suite or item.suite
    known = [path.stem for path in (CONFIGS / "exp").glob("*.yaml")]
    if suite not in known:
        raise unknown("--suite", suite, known, "suite")
    common = [f"+exp={suite}", *item.overrides, f"experts.seed={EXPERT_SEED}"]
    (first,) = compose_each([[f"+exp={suite}", f"experts.seed={EXPERT_SEED}", *given]])
    names = list(first.tasks.names)
    missing = [name for name in item.needs if name not in names]
    if missing:
        raise UserError(
            f"{item.name} needs tasks that this suite does not have", key="tasks.names", found=", ".join(names),
            expected=", ".join(item.needs),
        )  # fmt: skip
    repeated = list(dict.fromkeys(item.seeds if seeds is None else seeds))
    wanted: list[tuple[Row, int, list[str]]] = []
    for row in item.rows:
        count = row.at.get("count")
        if count is not None and count > len(names):
            continue
        own = [text.replace("{names}", f"[{','.join(names[:count])}]") for text in row.cell_on(suite)]
        once = row.deterministic and first.experts.seed is not None
        for seed in repeated[:1] if once else repeated:
            wanted.append((row, seed, [*common, *given, *own, f"seed={seed}"]))
    runs = compose_each([overrides for _, _, overrides in wanted])
    cells = tuple(Cell(row, seed, tuple(texts), run) for (row, seed, texts), run in zip(wanted, runs, strict=True))
    ordered = [name for name in item.task_heads if name in names]
    tasks = (*ordered, *(name for name in names if name not in ordered))
    comparable = suite in (item.suite, *item.also_comparable) and all(is_neutral(text) for text in given)
    return Plan(item, suite, tuple(given), comparable, tasks, cells)


def is_neutral(text: str) -> bool:
    """Whether an override leaves the experiment what it is."""
    key = text.lstrip("+~").split("=", 1)[0]
    return key in NEUTRAL_KEYS or key.split(".", 1)[0].split("/", 1)[0] in NEUTRAL


def provenance(plan: Plan, results: dict[str, dict[str, Any]], keys: dict[str, str]) -> list[dict[str, Any]]:
    """A record of every cell: its overrides, what determines it, and where its results are."""
    from twin_merging.pipeline.environment import git_commit
    from twin_merging.trackers import redact
    from twin_merging.validation import to_plain

    records = []
    for cell in plan.cells:
        result = results.get(cell.name)
        made = result["provenance"] if result else {}
        records.append(
            {
                "row": cell.row.head, "seed": cell.seed, "expert_seed": cell.run.training_seed, "heads": cell.run.heads,
                "overrides": redact(list(cell.overrides)), "config": redact(to_plain(cell.run)), "config_hash": keys.get(cell.name),
                "status": "done" if result else "missing", "git_commit": made.get("git_commit"),
                "reported_at_git_commit": git_commit(), "results": f"cells/{keys[cell.name]}/results.json" if result else None,
                "bytes_stored": result["bytes_stored"] if result else None,
            }
        )  # fmt: skip
    return records
