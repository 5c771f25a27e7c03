"""The table of costs beside that of scores: what is stored, what training and making took, and how fast it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twin_merging.reporting.methods import Estimate, Method, estimate, join_seeds
from twin_merging.reporting.tables import MISSING, NO_HEADS, Cell, Column, Table, human_bytes, warning_of

NOTES = (
    "Parameters: floating-point numbers that answering needs, heads included; stored: bytes on disk, with masks and indices.",
    "Training tokens: real ones that went through an encoder after the experts were there; of experts: their fine-tuning, rows × epochs, "
    "which every method but multitask, pretrained and imported experts needs. The rows of a router and of statistics go through "
    "the encoder once.",
    "Time and peak memory to make it: of the stages after the experts, without evaluation, when they were computed, be it by an "
    "earlier run.",
)
TIMED_NOTE = (
    "Per 1000 items: seconds with routing, medians of rounds in which the method and one static encoder take turns on the same "
    "batch of all tasks' test rows; ratio: to that encoder. Where the task of a row is known, a static encoder or an expert takes 1."
)


def cost_table(results: Sequence[dict[str, Any]]) -> Table | None:
    """One row a method; None where no result has its costs."""
    methods = join_seeds([result for result in results if result.get("costs")])
    if not methods:
        return None
    with_heads = any(method.heads != NO_HEADS for method in methods)
    columns = (
        Column("method", "", ("method",), "key"), *([Column("heads", "", ("heads",), "key")] if with_heads else []),
        _number("parameters", "", "parameters"), _number("stored", "", "bytes stored"),
        _number("training tokens", "", "training tokens"), _number("of experts", "tokens", "training tokens of experts"),
        _number("made in", "s", "seconds to make"), _number("peak memory", "", "peak memory"),
        _number("1000 items", "s", "seconds per 1000 items"), _number("ratio", "to static", "ratio to static"),
    )  # fmt: skip
    machines = {result["inference"].get("machine") for result in results if result.get("inference")}
    named = " and ".join(sorted(filter(None, machines)))
    timed = (TIMED_NOTE + (f" Measured on {named}." if named else ""),) if machines else ()
    warning = warning_of(results)
    return Table("Costs", columns, tuple(_row(method, with_heads) for method in methods), (*NOTES, *timed), warning)


def write_cost_table(table: Table, folder: Path) -> list[Path]:
    """Write costs.md and costs.csv into ``folder`` and return their paths."""
    from twin_merging.reporting.formats import to_csv, to_markdown

    texts = {"costs.md": to_markdown(table), "costs.csv": to_csv(table)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")
    return [folder / name for name in texts]


def human_count(count: float) -> str:
    """``22.7 M``, in powers of 1000."""
    for unit in ("", " k", " M", " G"):
        if count < 999.95:
            return f"{count:.1f}{unit}" if unit else f"{count:.0f}"
        count /= 1000
    return f"{count:.1f} T"


def _row(method: Method, with_heads: bool) -> tuple[Cell, ...]:
    def of(find: Callable[[dict[str, Any]], float | None], show: Callable[[float], str]) -> Cell:
        return _cell(estimate([find(result) for result in method.results]), show)

    def timed(key: str, decimals: int) -> Cell:
        return of(lambda result: (result.get("inference") or {}).get(key), lambda value: f"{value:.{decimals}f}")

    return (
        Cell(method.label, (method.label,)), *([Cell(method.heads, (method.heads,))] if with_heads else []),
        of(lambda result: sum(part["parameters"] for part in result["costs"]["stored"].values()), human_count),
        of(lambda result: result["bytes_stored"], human_bytes),
        of(lambda result: result["costs"]["training_tokens"]["after_experts"], human_count),
        of(lambda result: result["costs"]["training_tokens"]["experts"], human_count),
        of(lambda result: result["costs"]["making"]["seconds"], lambda value: f"{value:.1f}"),
        of(lambda result: result["costs"]["making"]["peak_memory"] or None, human_bytes),
        timed("seconds_per_1000", 2), timed("ratio", 2),
    )  # fmt: skip


def _cell(value: Estimate | None, show: Callable[[float], str]) -> Cell:
    return Cell(show(value.mean), (value.mean,)) if value else Cell(MISSING, (None,))


def _number(head: str, unit: str, field: str) -> Column:
    return Column(head, unit, (field,), "summary")
