"""The command line of ``reproduce.py``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from twin_merging.errors import UserError, exit_code
from twin_merging.reproducing.item import known_items, load_item

if TYPE_CHECKING:
    from twin_merging.reproducing.cells import Plan
    from twin_merging.reproducing.running import Done


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 done; 1 a cell failed, the others finished; 2 bad input."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_code(lambda: _main(arguments), "finished cells are kept, and the same command goes on from there")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="reproduce.py",
        description="Compute a table or figure of the paper and print it beside the paper's numbers.",
    )
    parser.add_argument("item", nargs="?", help="such as table_8; --list names all")
    parser.add_argument("overrides", nargs="*", help="of run.py, for every cell: paths.data=DIR seed=0,1,2")
    parser.add_argument("--list", action="store_true", help="all items, one a line")
    parser.add_argument("--suite", help="an experiment (+exp) in place of the paper's own; the title says so")
    parser.add_argument("--seeds", help="such as 0,1,2; the experts' seed stays 0 (experts.seed=null: it does not)")
    parser.add_argument("--only-report", action="store_true", help="compute nothing; missing cells are shown as –")
    return parser


def _main(arguments: list[str]) -> int:
    args = _parser().parse_intermixed_args(arguments)
    if args.list:
        return _list()
    if args.item is None:
        raise UserError(
            "no item is named",
            key="ITEM",
            expected="one of " + ", ".join(known_items()),
            hint="python reproduce.py --list",
        )
    item = load_item(args.item)
    seeds, given = _seeds(args.seeds, args.overrides)
    from twin_merging.mirror.needs import check_mirrored
    from twin_merging.pipeline.runner import configure_logging
    from twin_merging.reproducing.cells import plan_item

    configure_logging()
    plan = plan_item(item, args.suite, given, seeds)
    check_mirrored([cell.run for cell in plan.cells], [f"+exp={plan.suite}", *item.overrides, *given])
    from twin_merging.reproducing.running import collect_cells

    done = collect_cells(plan, compute=not args.only_report)
    _report(plan, done)
    return 1 if done.failures else 0


def _list() -> int:
    for name in known_items():
        item = load_item(name)
        print(f"{name:<18} {item.kind:<7} {item.cells:>3} cells  {item.title}: {item.shows}")
    return 0


def _seeds(flag: str | None, overrides: list[str]) -> tuple[list[int] | None, list[str]]:
    """Seeds of ``--seeds`` or of ``seed=0,1,2``, and the other overrides."""
    own = [text for text in overrides if text.startswith("seed=")]
    rest = [text for text in overrides if not text.startswith("seed=")]
    text = flag if flag is not None else (own[-1].partition("=")[2] if own else None)
    if text is None:
        return None, rest
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = [-1]
    if min(seeds) < 0:
        raise UserError(
            "not seeds",
            key="--seeds" if flag is not None else "seed",
            found=text,
            expected="numbers from 0, such as 0,1,2",
        )
    return seeds, rest


def _report(plan: Plan, done: Done) -> None:
    """Write table, figures and provenance, and print the table."""
    from rich.console import Console
    from rich.text import Text

    from twin_merging.reporting.formats import print_table
    from twin_merging.reporting.tables import write_tables
    from twin_merging.reproducing.cells import provenance
    from twin_merging.reproducing.tables import item_table

    table, console = item_table(plan, done), Console()
    paths = write_tables(table, plan.folder)
    if plan.item.draw and done.results:
        from twin_merging.reproducing.pictures import draw

        paths += draw(plan, done.results)
    records = plan.folder / "cells.json"
    records.write_text(
        json.dumps(provenance(plan, done.results, done.keys), indent=1, ensure_ascii=False), encoding="utf-8"
    )
    print_table(table, console)
    console.print(Text(f"written: {plan.folder}: {', '.join(_relative([*paths, records], plan.folder))}"))
    for name, message in done.failures.items():
        console.print(Text(f"failed: {name}: {message.splitlines()[0]}", style="bold red"))
        console.print(Text(f"        log: {plan.folder / 'cells' / done.keys[name] / 'failed.log'}"))


def _relative(paths: list[Path], folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in paths]
