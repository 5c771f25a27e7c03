"""Run the cells of an item that have no result yet. What is done is found in the cache, whoever computed it."""

from __future__ import annotations

import logging
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twin_merging.errors import UserError
from twin_merging.pipeline.cache import Cache, full_disk_explained
from twin_merging.pipeline.graph import Graph, graph_of
from twin_merging.pipeline.preflight import check_inputs
from twin_merging.pipeline.runner import execute
from twin_merging.progress import format_seconds
from twin_merging.reporting.results import RESULTS, read
from twin_merging.reproducing.cells import Cell, Plan

log = logging.getLogger("twin_merging")
FAILED_LOG = "failed.log"


@dataclass
class Done:
    """What there is of a plan.

    Args:
        results: by cell.
        keys: of each cell's result, as far as they are known.
        failures: each failed cell's message.
        obstacle: why no further key could be found, which only a report without computing puts up with.
    """

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    obstacle: str | None = None


def collect_cells(plan: Plan, compute: bool) -> Done:
    """All results of a plan; with ``compute``, those that are missing are computed, each after the other.

    Every missing job's inputs are checked before the first one runs. A job that fails does not stop the others.

    Raises:
        UserError: for bad input, found before work starts.
    """
    done, missing = Done(), []
    for cell in plan.cells:
        stages = _stages(cell)
        try:
            done.keys[cell.name] = stages.result.key
        except UserError as error:
            if compute:
                raise
            done.obstacle = " ".join(str(error).split())
            break
        folder = _folder(plan, done, cell)
        if not (folder / RESULTS).exists() and stages.cache.find(stages.result) is not None:
            _quietly(cell, folder)
        if (folder / RESULTS).exists():
            done.results[cell.name] = read(folder)
        else:
            missing.append(cell)
    log.info("%s on %s: %d cells, %d done", plan.item.name, plan.suite, len(plan.cells), len(done.results))
    if compute and missing:
        check_inputs([cell.run for cell in missing])
        _compute(plan, done, missing)
    return done


def _compute(plan: Plan, done: Done, missing: list[Cell]) -> None:
    start = time.perf_counter()
    for index, cell in enumerate(missing):
        left = ""
        if index:
            left = f", about {format_seconds((time.perf_counter() - start) / index * (len(missing) - index))} left"
        log.info("cell %d of %d%s: %s", index + 1, len(missing), left, cell.name)
        folder = _folder(plan, done, cell)
        try:
            if not (folder / RESULTS).exists():  # two rows may be one job
                execute(cell.run, folder, list(cell.overrides))
            done.results[cell.name] = read(folder)
        except Exception as error:  # whatever it is, the other cells go on
            if isinstance(error, UserError) and "disk" in error.message:
                raise
            message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            done.failures[cell.name] = message
            log.error("failed: %s", message)
            with full_disk_explained(folder, "paths.outputs"):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / FAILED_LOG).write_text(traceback.format_exc(), encoding="utf-8")


def _quietly(cell: Cell, folder: Path) -> None:
    """Write what the cache has, without a line about each."""
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        execute(cell.run, folder, list(cell.overrides))
    finally:
        log.setLevel(before)


def _stages(cell: Cell) -> Graph:
    return graph_of(cell.run, Cache(Path(cell.run.paths.cache), cell.run.cache))


def _folder(plan: Plan, done: Done, cell: Cell) -> Path:
    """Named by what determines the result, so that nothing is overwritten and nothing stale is read."""
    return plan.folder / "cells" / done.keys[cell.name]
