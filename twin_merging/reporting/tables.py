"""The table of a run or a multirun: one row a method, one column a task. How it is written is in ``formats.py``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from twin_merging.reporting.methods import Estimate, Method, join_seeds, task_metrics
from twin_merging.reporting.trials import trial_note

Scalar = str | int | float | None

OFFLINE_WARNING = "offline suite: not comparable with the paper's numbers"
RANDOM_WARNING = "random weights in place of pre-trained ones: scores say nothing of any method"
SCORE_NOTE = "Task columns: raw score / normalized score. Normalized = 100 × raw / reference."
PERCENT_NOTE = "Raw scores are × 100, except those of metrics that have no maximum of 1."
ROWS_NOTE = "(low to high): 95 % confidence interval of the raw score over the test rows."
SEED_NOTE = "±: half-width of the 95 % confidence interval over seeds (Student t)."
MISSING = "–"
HEADS = {
    "oracle": "oracle: the head of the true task answers",
    "routed": "routed: the head of the router's top task answers",
}
NO_HEADS = "none"  # where tasks are answered by text
# Parts of the names of metrics whose best value is 1, which papers print × 100.
SHARES = ("accuracy", "match", "f1", "matthews", "pearson", "spearman", "correlation", "rouge", "bleu", "auc", "recall")


@dataclass(frozen=True)
class Column:
    """A column: its head, what its numbers are, the names of its values in CSV, and its part in a narrow layout.

    ``part`` is "key" (names the row), "summary" (one number a row) or "task".
    """

    head: str
    unit: str
    fields: tuple[str, ...]
    part: str


@dataclass(frozen=True)
class Cell:
    """What is printed, and the values behind it: one for each of the column's fields."""

    text: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True)
class Table:
    """Columns, rows, and the words around them. ``warning`` goes with the table wherever it goes, CSV included."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    warning: str | None = None

    def records(self) -> list[dict[str, Scalar]]:
        """The values, unrounded: one mapping a row, with the warning in each as ``warning``."""
        records = []
        for row in self.rows:
            pairs = zip(self.columns, row, strict=True)
            record = {
                name: value for column, cell in pairs for name, value in zip(column.fields, cell.values, strict=True)
            }
            records.append(record | ({"warning": self.warning} if self.warning else {}))
        return records


def results_table(results: Sequence[dict[str, Any]]) -> Table:
    """One row a method with its raw and normalized score on each task, jobs that differ only in seed joined.

    Raw scores are printed × 100 where the metric is a share or a correlation; the values behind the cells are as measured.
    """
    methods, metrics = join_seeds(results), task_metrics(results)
    with_heads = any(method.heads != NO_HEADS for method in methods)
    return Table(
        title=_title(results),
        columns=_columns(metrics, with_heads),
        rows=tuple(_row(method, metrics, with_heads) for method in methods),
        notes=tuple(_notes(methods, metrics)),
        warning="; ".join(filter(None, [warning_of(results), *_leaks(results)])) or None,
    )


def warning_of(results: Sequence[dict[str, Any]]) -> str | None:
    """Why scores cannot be compared with the paper's, in words; None where nothing is against it."""
    words = {"random_weights": RANDOM_WARNING, "offline_suite": OFFLINE_WARNING}
    return "; ".join(text for key, text in words.items() if any(result.get(key) for result in results)) or None


def write_tables(table: Table, folder: Path) -> list[Path]:
    """Write table.md, table.csv and table.tex into ``folder`` and return their paths."""
    from twin_merging.reporting.formats import to_csv, to_latex, to_markdown

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"table.md": to_markdown(table), "table.csv": to_csv(table), "table.tex": to_latex(table)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")
    return [folder / name for name in texts]


def raw_scale(metric: str) -> float:
    """100 for metrics that papers print in percent points, else 1."""
    return 100.0 if any(part in metric.lower() for part in SHARES) else 1.0


def human_bytes(count: float) -> str:
    """``90.9 MB``, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.95:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _columns(metrics: dict[str, str], with_heads: bool) -> tuple[Column, ...]:
    tasks = [
        Column(task, metric, tuple(f"{task} {field}" for field in _TASK_FIELDS), "task")
        for task, metric in metrics.items()
    ]
    return (
        Column("method", "", ("method",), "key"),
        *([Column("heads", "", ("heads",), "key")] if with_heads else []),
        Column("seeds", "", ("seeds", "number of seeds"), "summary"),
        *tasks,
        Column("average", "normalized", ("average normalized", "average normalized ±"), "summary"),
        Column("stored", "", ("bytes stored",), "summary"),
        Column("time", "s", ("seconds",), "summary"),
    )


_TASK_FIELDS = ("raw", "raw ±", "normalized", "normalized ±", "reference")


def _row(method: Method, metrics: dict[str, str], with_heads: bool) -> tuple[Cell, ...]:
    average, stored, seconds = (method.value(key) for key in ("average_normalized", "bytes_stored", "seconds"))
    seeds = method.seeds
    return (
        Cell(method.label, (method.label,)),
        *([Cell(method.heads, (method.heads,))] if with_heads else []),
        Cell(str(len(seeds)), (" ".join(map(str, seeds)), len(seeds))),
        *(_task_cell(method, task, metric) for task, metric in metrics.items()),
        Cell(average.text() if average else MISSING, _values(average)),
        Cell(human_bytes(stored.mean) if stored else MISSING, _values(stored)[:1]),
        Cell(f"{seconds.mean:.1f}" if seconds else MISSING, _values(seconds)[:1]),
    )


def _task_cell(method: Method, task: str, metric: str) -> Cell:
    raw, normalized, reference = (method.task_value(task, key) for key in ("raw", "normalized", "reference"))
    values = (*_values(raw), *_values(normalized), *_values(reference)[:1])
    if raw is None:
        return Cell(MISSING, values)
    scale = raw_scale(metric)
    decimals = 1 if scale == 100 else 3
    shown = raw.text(scale, decimals)
    if _shows_rows(method) and (bounds := method.interval(task)):
        shown += f" ({' to '.join(f'{scale * bound:.{decimals}f}' for bound in bounds)})"
    return Cell(f"{shown} / {normalized.text() if normalized else MISSING}", values)


def _shows_rows(method: Method) -> bool:
    """Whether its scores have their interval over test rows, of which language models answer few."""
    return method.heads == NO_HEADS and len(method.results) == 1


def _values(value: Estimate | None) -> tuple[Scalar, Scalar]:
    return (value.mean, value.half_width) if value else (None, None)


def _title(results: Sequence[dict[str, Any]]) -> str:
    def names(key: str) -> str:
        return ", ".join(dict.fromkeys(str(result[key]) for result in results))

    return f"{names('exp')}: {names('suite')} tasks, {names('backbone')}"


def _notes(methods: Sequence[Method], metrics: dict[str, str]) -> list[str]:
    results = [result for method in methods for result in method.results]
    references = "; ".join(dict.fromkeys(result["reference"] for result in results))
    notes = [f"{SCORE_NOTE} Reference: {references}."]
    if any(raw_scale(metric) != 100 for metric in metrics.values()):
        notes.append(PERCENT_NOTE)
    heads = [HEADS[name] for name in HEADS if any(method.heads == name for method in methods)]
    if any((method.label, method.heads) == ("finetuned", "routed") for method in methods):
        heads.append("of finetuned its whole expert")
    notes.append(f"Heads: {'; '.join(heads)}." if heads else "")
    notes.append(SEED_NOTE if any(len(method.results) > 1 for method in methods) else "")
    notes.append(ROWS_NOTE if any(map(_shows_rows, methods)) else "")
    notes += [trial_note(methods) or "", *_choice_notes(methods)]
    notes += _expert_notes(results)
    repeats = sum(method.repeats for method in methods)
    notes.append(
        f"{repeats} job(s) repeat the seed of a later job in the same row and are left out." if repeats else ""
    )
    return [note for note in notes if note]


def _choice_notes(methods: Sequence[Method]) -> list[str]:
    """What was chosen on each split; for which methods, unless several chose and all chose the same."""
    chosen: dict[str, dict[str, dict[str, str]]] = {}
    for method in methods:
        for result in method.results:
            for choice in result["choices"]:
                of_what = chosen.setdefault(choice["split"], {}).setdefault(choice["what"], {})
                of_what[f"{method.label}, {result['seed']}"] = f"{_plain(choice['chosen'])} for {method.label}"
    notes = []
    for split, choices in chosen.items():
        words = []
        for what, by_method in choices.items():
            values = {text.partition(" for ")[0] for text in by_method.values()}
            alike = len(values) == 1 and len(by_method) > 1
            words.append(f"{what} = {values.pop() if alike else ', '.join(dict.fromkeys(by_method.values()))}")
        notes.append(f"Chosen on the {split} split: {'; '.join(words)}.")
    return notes


def _leaks(results: Sequence[dict[str, Any]]) -> list[str]:
    """Each leak once, with the rows that have it unless all do."""
    labels: dict[str, dict[str, None]] = {}
    for result in results:
        for leak in result.get("leaks", []):
            labels.setdefault(leak, {})[result["label"]] = None
    everyone = {result["label"] for result in results}
    return [leak if set(having) == everyone else f"{leak} ({', '.join(having)})" for leak, having in labels.items()]


def _expert_notes(results: Sequence[dict[str, Any]]) -> list[str]:
    """The experts' scores beside the published ones: means over what the table's jobs found, and which are off."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        for task, entry in result.get("experts", {}).items():
            found.setdefault(task, []).append(entry)
    if not found:
        return []
    scores = {task: fmean(entry["raw"] for entry in entries) for task, entries in found.items()}
    words = [f"{task} {scores[task]:.1f} ({entries[0]['reference']:.1f})" for task, entries in found.items()]
    off = [task for task, entries in found.items() if any(entry["off"] for entry in entries)]
    apart = f" Off by more than the tolerance: {', '.join(off)}." if off else ""
    return [f"Experts, and what is published of them: {', '.join(words)}.{apart}"]


def _plain(value: Any) -> str:
    return re.sub(r"\s+", " ", f"{value:g}" if isinstance(value, float) else str(value))
