"""The report of a run or a multirun: its table and its figures, written beside the results and shown on the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twin_merging.errors import UserError
from twin_merging.reporting.cost_tables import cost_table, write_cost_table
from twin_merging.reporting.looks import CONFUSION, EXAMPLES, FIGURES, looks_of
from twin_merging.reporting.methods import join_seeds
from twin_merging.reporting.results import RESULTS, collect, collect_failures, job_folders
from twin_merging.reporting.tables import Table, results_table, write_tables
from twin_merging.reporting.unknown_tables import methods_of, unknown_tables, write_unknown_tables

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Report:
    """What was found below ``folder`` and what was written there. ``table`` is None if every job failed; ``others`` follow it.

    ``looks`` are the pictures that each job of images drew of its own answers.
    """

    folder: Path
    results: tuple[dict[str, Any], ...]
    failures: tuple[dict[str, Any], ...]
    table: Table | None
    tables: tuple[Path, ...] = ()
    figures: tuple[Path, ...] = ()
    others: tuple[Table, ...] = ()
    looks: tuple[Path, ...] = ()


def report(folder: Path) -> Report:
    """Collect the results below ``folder``; write table.md, table.csv, table.tex and figures/ into it.

    Raises:
        UserError: if there is neither a result nor a failure, or a file is damaged.
    """
    folder = Path(folder)
    results, failures = collect(folder), collect_failures(folder)
    if not results and not failures:
        raise UserError("no results below this folder", key=str(folder), expected="a folder of a run or of a multirun")
    if not results:
        return Report(folder, (), tuple(failures), None)
    table = results_table(results)
    costs, unknown = cost_table(results), unknown_tables(results)
    tables = [*write_tables(table, folder), *write_unknown_tables(unknown, folder)]
    if costs is not None:
        tables += write_cost_table(costs, folder)
    jobs = job_folders(folder)
    figures = _draw(results, jobs, folder / FIGURES)
    looks = tuple(path for job in jobs for path in looks_of(job))
    others = (*([costs] if costs else []), *unknown.values())
    return Report(folder, tuple(results), tuple(failures), table, tuple(tables), tuple(figures), others, looks)


def print_report(report: Report, console: Console) -> None:
    """Print the table, which jobs failed and where their logs are, and where the files are."""
    from rich.text import Text

    from twin_merging.reporting.formats import print_table

    if report.table:
        for table in (report.table, *report.others):
            print_table(table, console)
    for failure in report.failures:
        first_line = (str(failure.get("message") or "").strip().splitlines() or ["no message"])[0]
        console.print(Text(f"failed: {failure.get('label', 'a job')}: {first_line}", style="bold red"))
        console.print(Text(f"        log: {failure.get('log', 'none')}"))
    if report.tables:
        names = ", ".join(path.name for path in report.tables)
        console.print(Text(f"tables:  {report.folder}: {names}"))
    if report.figures:
        count = sum(path.suffix == ".png" for path in report.figures)
        console.print(Text(f"figures: {report.folder / FIGURES}: {count} as PNG and SVG"))
    if report.looks:
        place = report.folder / (FIGURES if (report.folder / RESULTS).exists() else f"JOB/{FIGURES}")
        routed = f", and {EXAMPLES} of routed images" if any(path.stem == EXAMPLES for path in report.looks) else ""
        console.print(Text(f"answers: {place}: {CONFUSION}_TASK{routed}"))


def _draw(results: Sequence[dict[str, Any]], jobs: Sequence[Path], folder: Path) -> list[Path]:
    from twin_merging.reporting.figures import slug, sweep_lines, task_bars

    paths = [*sweep_lines(results, folder), *task_bars(results, folder)]
    routed = {method.label: method for method in reversed(join_seeds(results)) if method.results[0]["routing"]}
    for label in reversed(routed):  # oracle and routed heads of one label share their router
        first = routed[label].results[0]
        job = next(job for job, result in zip(jobs, results, strict=True) if result is first)
        paths += _heatmap_of(job, first, folder, f"routing_{slug(label)}")
    for method in methods_of(results):
        from twin_merging.reporting.unknown_figures import unknown_figures

        paths += unknown_figures(method.results[0], method.label, folder)
    return paths


def _heatmap_of(job: Path, result: dict[str, Any], folder: Path, name: str) -> list[Path]:
    """The heat map that the job drew for its tracker, copied; drawn if there is none."""
    from twin_merging.reporting.figures import routing_heatmap

    drawn = [job / f"routing{suffix}" for suffix in (".png", ".svg")]
    if not all(path.is_file() for path in drawn):
        return routing_heatmap(result, folder, name)
    return [Path(shutil.copyfile(path, folder / f"{name}{path.suffix}")) for path in drawn]
