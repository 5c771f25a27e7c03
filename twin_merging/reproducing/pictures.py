"""The paper's figures from an item's results: PNG and SVG.

Importing this file imports matplotlib. Series differ in marker and line style as well as in colour, so that they can be
told apart in grey.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twin_merging.reporting.bars import WARNING
from twin_merging.reporting.figures import save, styled
from twin_merging.reporting.methods import Estimate, estimate
from twin_merging.reproducing.cells import Plan
from twin_merging.reproducing.heat_maps import Results, gamma_grid, results_of, routing_matrix, routing_of
from twin_merging.reproducing.item import Row
from twin_merging.reproducing.tables import in_percent, name_of, warning_of

Series = dict[str, list[tuple[float, Estimate]]]
LINES: tuple[dict[str, Any], ...] = (
    {"color": "#000000", "marker": "o", "linestyle": "-"},
    {"color": "#0072B2", "marker": "s", "linestyle": "--"},
    {"color": "#E69F00", "marker": "^", "linestyle": "-"},
    {"color": "#009E73", "marker": "D", "linestyle": ":"},
    {"color": "#D55E00", "marker": "v", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "P", "linestyle": (0, (1, 1))},
    {"color": "#56B4E9", "marker": "X", "linestyle": "--"},
    {"color": "#F0E442", "marker": "*", "linestyle": "-"},
    {"color": "#999999", "marker": "h", "linestyle": ":"},
)
TOP = 0.88  # where matplotlib lets axes end, as a share of the figure
HATCHES = ("", "//", "", "..", "\\\\", "", "xx", "++", "")


def draw(plan: Plan, results: Results) -> list[Path]:
    """Draw an item's picture into its folder."""
    with styled() as figure:
        _DRAWINGS[plan.item.draw or ""](figure, plan, results)
        title = f"{name_of(plan.item)}: {plan.item.title}"
        top = figure.get_figheight()
        words = fill(warning_of(plan, results.values()) or f"suite {plan.suite}, {plan.backbone}", 110)
        above = 0.3 + 0.2 * len(words.splitlines())  # inches that the words take
        figure.text(0.5, TOP + above / top, fill(title, 90), ha="center", va="bottom", fontsize="large")
        figure.text(0.5, TOP + 0.25 / top, words, ha="center", va="bottom", **WARNING)
        return save(figure, plan.folder, plan.item.name)


def _estimate(plan: Plan, results: Results, row: Row, key: str) -> Estimate | None:
    """A row's mean over seeds of a number in results.json, and its interval."""
    return estimate([result[key] for result in results_of(plan, results, row)])


def _points(plan: Plan, results: Results, x: str, y: str) -> Series:
    """By series, x of a row's place and y over its seeds, of the rows that have results."""
    series: Series = {}
    for row in plan.rows:
        value = _estimate(plan, results, row, y)
        if x in row.at and value is not None:
            series.setdefault(row.at["series"], []).append((row.at[x], value))
    return series


def _lines(axes: Axes, series: Series) -> None:
    """A line a series; whiskers are 95 % confidence intervals, where several seeds ran."""
    for index, (name, points) in enumerate((name, points) for name, points in series.items() if points):
        spreads = [y.half_width or 0.0 for _, y in points]
        axes.errorbar(
            [x for x, _ in points], [y.mean for _, y in points], spreads if any(spreads) else None, label=name,
            markersize=5, linewidth=1.4, elinewidth=0.9, capsize=3, **LINES[index % len(LINES)],
        )  # fmt: skip
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _in_steps(points: list[tuple[float, Estimate]]) -> list[tuple[float, Estimate]]:
    """The same, one step apart."""
    return [(float(place), y) for place, (_, y) in enumerate(points)]


def _sides(figure: Figure) -> tuple[Axes, Axes]:
    figure.set_size_inches(9.0, 3.4)
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.28})
    return left, right


def _spread(axes: Axes, sparsity: list[float]) -> None:
    """An axis of sparsity on which 90, 99 and 99.8 % are apart."""
    axes.set_xticks(range(len(sparsity)), [f"{value:g}" for value in sparsity])
    axes.set_xlabel("sparsity in %, not to scale")


def _legend(axes: Axes) -> None:
    """A legend, unless nothing was drawn yet."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, frameon=False)


def task_groups(figure: Figure, plan: Plan, results: Results) -> None:
    """A group of bars a task, a bar a method (Figure 2b)."""
    rows = [row for row in plan.rows if results_of(plan, results, row)]
    figure.set_size_inches(max(1.25 * len(plan.tasks), 6), 3.6)
    axes, width = figure.subplots(), 0.84 / max(len(rows), 1)
    for index, row in enumerate(rows):
        heights, errors = [], []
        for task in plan.tasks:
            value = estimate([in_percent(result["tasks"][task], "raw") for result in results_of(plan, results, row)])
            heights.append(value.mean if value else np.nan)
            errors.append((value.half_width if value else None) or 0.0)
        places = [place + (index - (len(rows) - 1) / 2) * width for place in range(len(plan.tasks))]
        axes.bar(
            places, heights, width, label=row.head_on(plan.suite), facecolor=LINES[index % len(LINES)]["color"] if index else "white",
            hatch=HATCHES[index % len(HATCHES)], edgecolor="black", linewidth=0.5,
        )  # fmt: skip
        if any(errors):
            axes.errorbar(places, heights, errors, fmt="none", ecolor="black", elinewidth=0.8, capsize=1.5)
    axes.set_xticks(range(len(plan.tasks)), [plan.item.task_heads.get(task, task) for task in plan.tasks])
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel("raw score × 100")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False)


def tasks_and_storage(figure: Figure, plan: Plan, results: Results) -> None:
    """Left: score by number of tasks. Right: score by what is stored, a point a number of tasks (Figure 4)."""
    left, right = _sides(figure)
    _lines(left, _points(plan, results, "count", "average_normalized"))
    left.set(xlabel="number of tasks", ylabel="average normalized score")
    left.set_xticks(sorted({row.at["count"] for row in plan.rows}))
    series: Series = {}
    for row in plan.rows:
        score, stored = (_estimate(plan, results, row, key) for key in ("average_normalized", "bytes_stored"))
        if score is not None and stored is not None:
            series.setdefault(row.at["series"], []).append((stored.mean / 1e6, score))
    _lines(right, series)
    right.set(xlabel="stored: encoders, factors, heads, router (MB)", ylabel="average normalized score")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, frameon=False)


def sparsity(figure: Figure, plan: Plan, results: Results) -> None:
    """Left: twin with SVD by sparsity. Right: three sparsifiers at the same sparsity (Figure 6)."""
    left, right = _sides(figure)
    series = _points(plan, results, "x", "average_normalized")
    svd = series.get("SVD", [])
    _lines(left, {"SVD": _in_steps(svd)})
    _spread(left, [x for x, _ in svd])
    common = sorted({row.at["x"] for row in plan.rows if row.at["series"] != "SVD"})
    _lines(
        right,
        {name: [(float(common.index(x)), y) for x, y in points if x in common] for name, points in series.items()},
    )
    _spread(right, common)
    for axes in (left, right):
        axes.set_ylabel("average normalized score")
    _legend(right)


def knowledge(figure: Figure, plan: Plan, results: Results) -> None:
    """Left: score by epochs of fine-tuning. Right: one expert in the base model by sparsity (Figure 3)."""
    left, right = _sides(figure)
    _lines(left, _points(plan, results, "epochs", "average_raw"))
    left.set(xlabel="fine-tuning epochs", ylabel="average raw score")
    _legend(left)
    points = _points(plan, results, "x", "average_normalized").get("one expert", [])
    _lines(right, {"one expert": _in_steps(points)})
    _spread(right, [x for x, _ in points])
    for row in plan.rows:
        merged = _estimate(plan, results, row, "average_normalized")
        if row.at.get("series") == "all experts merged" and merged is not None:
            right.axhline(merged.mean, color="#D55E00", linestyle="--", label="all experts merged")
    right.set_ylabel("average normalized score")
    _legend(right)


def score_by_size(figure: Figure, plan: Plan, results: Results) -> None:
    """A point a method: its score over the numbers that answering needs, with 95 % intervals over seeds (Figure 2a)."""
    figure.set_size_inches(6.4, 4)
    axes = figure.subplots()
    for index, row in enumerate(plan.rows):
        found = results_of(plan, results, row)
        score = estimate([result["average_normalized"] for result in found])
        if score is None:
            continue
        size = max(sum(part["parameters"] for part in result["costs"]["stored"].values()) for result in found)
        axes.errorbar(
            size / 1e6, score.mean, score.half_width or 0.0, label=row.head_on(plan.suite), capsize=2, markeredgecolor="black", markeredgewidth=0.5,
            **{**LINES[index % len(LINES)], "linestyle": "none"}
        )  # fmt: skip
    axes.set(
        xlabel="parameters that answering needs: model, exclusive knowledge, router (millions)",
        ylabel="average normalized score",
    )
    axes.margins(0.12)
    _legend(axes)


_DRAWINGS: dict[str, Callable[[Figure, Plan, Results], None]] = {
    function.__name__: function
    for function in (
        task_groups,
        tasks_and_storage,
        sparsity,
        knowledge,
        score_by_size,
        routing_of,
        routing_matrix,
        gamma_grid,
    )
}
