"""Pictures of results: a bar chart a task, the average, and where the router sent each task. PNG and SVG.

Importing this file imports matplotlib.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from twin_merging.reporting.bars import WARNING, Bar, Words, draw_bars
from twin_merging.reporting.lines import draw_lines, lines_by_key
from twin_merging.reporting.methods import Method, join_seeds, task_metrics
from twin_merging.reporting.tables import raw_scale, warning_of

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",  # text stays text: it can be searched, and edited
    "svg.hashsalt": "twin_merging",  # equal inputs give equal files
}
CELL, GAP, TOP = 0.55, 0.4, 0.95  # inches: a heat map's cell, the gap between two maps, the room above them
PAD = 0.12  # inches around a picture


def task_bars(results: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """One chart a task: raw test score of every method, oracle and routed heads side by side, the reference as a line.

    One more, ``average_normalized``, shows the average normalized score. Whiskers are 95 % confidence intervals.
    """
    methods, metrics = join_seeds(results), task_metrics(results)
    warning = warning_of(results)
    with styled() as figure:
        draw_bars(figure, *_average(methods, warning))
        paths = save(figure, folder, "average_normalized")
        for task, metric in metrics.items():
            draw_bars(figure, *_task(methods, task, metric, warning))
            paths += save(figure, folder, f"task_{slug(task)}")
    return paths


def sweep_lines(results: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """One chart for each key whose number the sweep varies: the average normalized score against it, a line a method."""
    warning, paths = warning_of(results), []
    with styled() as figure:
        for key, lines in lines_by_key(results).items():
            draw_lines(figure, key, lines, warning)
            paths += save(figure, folder, f"sweep_{slug(key)}")
    return paths


def routing_heatmap(result: dict[str, Any], folder: Path, name: str = "routing") -> list[Path]:
    """Where the router of one job sent the test rows of each task; ``name`` is that of the files.

    Left: the mean routing weight of each expert. Right: the share of rows whose top expert it is, with the count.

    Raises:
        ValueError: if the job had no router.
    """
    routing = result["routing"]
    if routing is None:
        raise ValueError(f"{result['label']} has no routing to draw")
    names, weights, counts = routing["task_names"], routing["mean_weights"], routing["confusion"]
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    with styled() as figure:
        left, right = _panels(figure, len(names))
        heatmap(left, weights, [[f"{value:.2f}" for value in row] for row in weights], names)
        left.set(title="mean routing weight", ylabel="true task")
        heatmap(right, shares, [_share_texts(*rows) for rows in zip(shares, counts, strict=True)], names)
        right.set(title="top expert: share and number of test rows")
        right.tick_params(labelleft=False)
        facts = f"accuracy {100 * routing['accuracy']:.1f}%"
        if routing["temperature"] is not None:  # an oracle has none
            facts += f", temperature {routing['temperature']:.3g}"
        headline(figure, f"Router of {result['label']}, seed {result['seed']}: {facts}", warning_of([result]))
        return save(figure, folder, name)


def slug(name: str) -> str:
    """A file name for any name."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def _task(methods: Sequence[Method], task: str, metric: str, warning: str | None) -> tuple[list[Bar], Words]:
    scale, bars = raw_scale(metric), []
    for method in methods:
        raw, reference, bounds = (
            method.task_value(task, "raw"),
            method.task_value(task, "reference"),
            method.interval(task),
        )
        if raw is not None:
            interval = (bounds[0] * scale, bounds[1] * scale) if bounds else None
            reference_value = reference.mean * scale if reference else None
            bars.append(Bar(method.label, method.heads, raw.mean * scale, interval, reference_value))
    rows = max(
        result["tasks"][task]["rows"] for method in methods for result in method.results if task in result["tasks"]
    )
    whiskers = "; whiskers: 95 % confidence" if any(bar.interval for bar in bars) else ""
    axis = f"{metric}{' × 100' if scale == 100 else ''} on {rows:,} test rows{whiskers}"
    return bars, Words(task, axis, "finetuned expert", warning, decimals=1 if scale == 100 else 3)


def _average(methods: Sequence[Method], warning: str | None) -> tuple[list[Bar], Words]:
    bars = []
    for method in methods:
        average = method.value("average_normalized")
        if average is not None:
            spread = average.half_width
            interval = None if spread is None else (average.mean - spread, average.mean + spread)
            bars.append(Bar(method.label, method.heads, average.mean, interval, 100.0))
    whiskers = "; whiskers: 95 % confidence over seeds" if any(bar.interval for bar in bars) else ""
    axis = f"normalized score, percent of the finetuned experts'{whiskers}"
    return bars, Words("average over tasks", axis, "finetuned experts", warning, decimals=1)


def _panels(figure: Figure, count: int) -> tuple[Axes, Axes]:
    """Two squares with room for ``count`` cells each way; what hangs out of the figure is kept when it is saved."""
    side = max(CELL * count, 2.6)
    width, height = 2 * side + GAP, side + TOP
    figure.set_size_inches(width, height)
    left = figure.add_axes((0, 0, side / width, side / height))
    right = figure.add_axes(((side + GAP) / width, 0, side / width, side / height))
    return left, right


def heatmap(
    axes: Axes, values: Sequence[Sequence[float]], texts: Sequence[Sequence[str]], names: Sequence[str]
) -> None:
    """Draw shares (rows, columns) from white to dark blue, each with its text, both axes named after the tasks."""
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1)
    for row, columns in enumerate(values):
        for column, value in enumerate(columns):
            colour = "white" if value > 0.55 else "black"
            axes.text(column, row, texts[row][column], ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("expert")


def _share_texts(shares: Sequence[float], counts: Sequence[int]) -> list[str]:
    return [f"{100 * share:.0f}%\n{count}" for share, count in zip(shares, counts, strict=True)]


def headline(figure: Figure, title: str, warning: str | None) -> None:
    """Write the title above a figure, and below it what has to be warned of."""
    height = figure.get_figheight()
    figure.text(0.5, 1 - 0.05 / height, title, ha="center", va="top", fontsize="large")
    if warning:
        figure.text(0.5, 1 - 0.32 / height, warning, ha="center", va="top", **WARNING)


@contextmanager
def styled() -> Iterator[Figure]:
    """A figure that belongs to no window system, in our style."""
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        FigureCanvasAgg(figure)
        yield figure


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write NAME.png and NAME.svg without a date, and as large as what is drawn, so that nothing is cut."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    # Measured once for both files: "tight" would lay everything out again for each.
    extent = figure.get_tightbbox().padded(PAD)
    figure.savefig(png, dpi=150, bbox_inches=extent, metadata={"Software": None})
    figure.savefig(svg, bbox_inches=extent, metadata={"Date": None, "Creator": None})
    return [png, svg]
