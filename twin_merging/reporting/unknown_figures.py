"""Pictures of ``evaluation=task_unknown``: reliability, what wrong routes cost, label noise, a new domain. PNG and SVG.

Importing this file imports matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from twin_merging.reporting.bars import EDGE, STYLES
from twin_merging.reporting.figures import CELL, headline, heatmap, save, slug, styled
from twin_merging.reporting.tables import raw_scale, warning_of

BLUE, ORANGE = STYLES["oracle"], STYLES["routed"]
# Okabe and Ito's colours, dark ones first; markers tell them apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F", "#A6761D")
MARKERS = "osD^vPX*"
PANEL, TOP, LEFT, GAP, LOW = 2.9, 0.82, 0.75, 0.75, 0.8  # inches: a panel's side, and the margins
FEW = 10  # rows below which a bin says little
LINE: dict[str, Any] = {"linewidth": 1.6, "markersize": 5, "markeredgecolor": "black", "markeredgewidth": 0.4}
DASHED: dict[str, Any] = {"color": "black", "linestyle": (0, (4, 2)), "linewidth": 1.0}


def unknown_figures(result: dict[str, Any], label: str, folder: Path) -> list[Path]:
    """All pictures of one job; ``label`` is its method's in the tables and part of the files' names."""
    record, paths = result["task_unknown"], []
    with styled() as figure:
        for name, draw in (
            ("reliability", _reliability), ("wrong_routes", _wrong_routes), ("label_noise", _noise), ("new_domain", _new_domain),
        ):  # fmt: skip
            if name == "new_domain" and not record["new_domain"]:
                continue
            if name == "label_noise" and len(record["noise"]) < 2:
                continue
            figure.clear()
            title = draw(figure, result, record)
            headline(figure, f"{title}: {label}, seed {result['seed']}", warning_of([result]))
            paths += save(figure, folder, f"{name}_{slug(label)}")
    return paths


def _reliability(figure: Figure, result: dict[str, Any], record: dict[str, Any]) -> str:
    """For routes and answers: accuracy by confidence, and below it how many rows have that confidence."""
    parts = (("routes", record["router"]["calibration"]), ("answers of the top task's head", record["answers"]["head"]))
    low = 0.9
    width, height = LEFT + 2 * PANEL + GAP + 0.1, TOP + PANEL + 0.15 + low + LOW
    figure.set_size_inches(width, height)
    for index, (name, found) in enumerate(parts):
        left = (LEFT + index * (PANEL + GAP)) / width
        upper = figure.add_axes((left, (LOW + low + 0.15) / height, PANEL / width, PANEL / height))
        lower = figure.add_axes((left, LOW / height, PANEL / width, low / height), sharex=upper)
        _calibration(upper, lower, found)
        ece = "none" if found["ece"] is None else f"{100 * found['ece']:.1f}"
        upper.set_title(f"{name}: ECE {ece}, {found['rows']:,} rows", fontsize=9)
        lower.set_xlabel("confidence")
        if index == 0:
            upper.set_ylabel("share of them that is right")
            lower.set_ylabel("rows")
    handles: list[Any] = [
        Patch(label="accuracy", **EDGE, **BLUE),
        Patch(label=f"of fewer than {FEW} rows", facecolor="white", edgecolor="black", linewidth=0.6),
        Line2D([], [], label="mean confidence", color="#D55E00", marker="o", linestyle="", **_points()),
        Line2D([], [], label="calibrated", **DASHED),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=4, frameon=False, borderaxespad=0.1)
    return "Reliability"


def _calibration(upper: Axes, lower: Axes, found: dict[str, Any]) -> None:
    upper.plot([0, 1], [0, 1], **DASHED, zorder=3)
    for each in found["bins"]:
        if not each["rows"]:
            continue
        wide, style = each["high"] - each["low"], BLUE if each["rows"] >= FEW else {"facecolor": "white"}
        upper.bar(each["low"], each["accuracy"], wide, align="edge", **EDGE, **style)
        middle = (each["low"] + each["high"]) / 2
        upper.plot(middle, each["confidence"], color="#D55E00", marker="o", linestyle="", zorder=4, **_points())
        lower.bar(each["low"], each["rows"], wide, align="edge", facecolor="#999999", **EDGE)
    upper.set(xlim=(0, 1), ylim=(0, 1.03))
    upper.tick_params(labelbottom=False)
    lower.set_yscale("log")
    lower.set_ylim(bottom=0.8)


def _points() -> dict[str, Any]:
    return {"markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.7}


def _wrong_routes(figure: Figure, result: dict[str, Any], record: dict[str, Any]) -> str:
    """Points that each task loses to wrong heads and to wrong weights."""
    tasks, bar = record["cost"]["tasks"], 0.26
    kinds = [
        (name, key, style)
        for name, key, style in (
            ("the head of another task answers", "lost_by_heads", BLUE), ("under the weights of another task", "lost_by_weights", ORANGE),
        )
        if any(each[key] is not None for each in tasks.values())
    ]  # fmt: skip
    width, over, tall = 7.0, 0.62, bar * (len(kinds) + 0.6) * len(tasks)
    height = over + max(tall, 0.8) + LOW
    figure.set_size_inches(width, height)
    axes = figure.add_axes((1.9 / width, LOW / height, 1 - 2.0 / width, max(tall, 0.8) / height))
    ticks, values, top = [], [0.0], 0.0
    for each in tasks.values():
        ticks.append(top + (len(kinds) - 1) / 2)
        for place, (_, key, style) in enumerate(kinds):
            value = raw_scale(each["metric"]) * each[key]
            values.append(value)
            axes.barh(top + place, value, 0.86, **EDGE, **style)
            place_of_text = (max(value, 0), top + place)
            axes.annotate(f"{value:.2f}", place_of_text, (4, 0), textcoords="offset points", va="center", fontsize=8)
        top += len(kinds) + 0.6
    names = [f"{name}\n{each['wrong']} of {each['rows']:,} sent wrong" for name, each in tasks.items()]
    axes.set_yticks(ticks, names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(top - 1.0, -0.7)
    span = max(max(values) - min(values), 0.5)
    axes.set_xlim(min(values) - 0.03 * span, max(max(values), min(values) + span) + 0.12 * span)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("points of the task's raw score that are lost")
    handles = [Patch(label=name, **EDGE, **style) for name, _, style in kinds]
    figure.legend(handles=handles, loc="lower center", ncols=2, frameon=False, borderaxespad=0.1)
    return "What rows sent to a wrong task cost"


def _noise(figure: Figure, result: dict[str, Any], record: dict[str, Any]) -> str:
    """Left: routing accuracy of each task; right: of all rows, beside how sure the router is."""
    names, entries = record["stream"]["task_names"], record["noise"]
    legend = 0.2 * -(-len(names) // 2)
    width, height = LEFT + 2 * PANEL + GAP + 0.1, TOP + PANEL + 0.55 + legend
    figure.set_size_inches(width, height)
    left, right = (
        figure.add_axes(
            ((LEFT + index * (PANEL + GAP)) / width, (0.55 + legend) / height, PANEL / width, PANEL / height)
        )
        for index in range(2)
    )
    shares = [100 * entry["share"] for entry in entries]
    for index, name in enumerate(names):
        values = [100 * entry["by_task"][name] for entry in entries]
        style = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], **LINE}
        left.plot(shares, values, label=name, **style)
    lines = (("accuracy", "routed right", BLUE["facecolor"], "o", "-"), ("confidence", "mean confidence", "#D55E00", "s", "--"),
             ("ece", "ECE", "#000000", "^", ":"))  # fmt: skip
    for key, name, colour, marker, dashes in lines:
        right.plot(
            shares,
            [100 * entry[key] for entry in entries],
            label=name,
            color=colour,
            marker=marker,
            linestyle=dashes,
            **LINE,
        )
    for axes, title in ((left, "rows of each task routed right, %"), (right, "all rows, %")):
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("wrong labels among the router's rows, %")
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
    right.set_ylim(-2, 102)
    lowest = min(100 * value for entry in entries for value in entry["by_task"].values())
    left.set_ylim(max(lowest - 5, -2), 101)
    for axes, columns in ((left, 2), (right, 1)):
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns, frameon=False, fontsize=8, borderaxespad=0,
            handlelength=2.6, columnspacing=1.0, labelspacing=0.3,
        )  # fmt: skip
    return "Label noise"


def _new_domain(figure: Figure, result: dict[str, Any], record: dict[str, Any]) -> str:
    """Left: where a left-out task's rows go; right: how sure the router is of them, and of the rows that it knows."""
    names, entries = list(record["new_domain"]), record["new_domain"]
    side, wide = max(CELL * len(names), 2.6), 3.2
    width, height = side + 0.4 + wide, side + TOP
    figure.set_size_inches(width, height)
    left = figure.add_axes((0, 0, side / width, side / height))
    right = figure.add_axes(((side + 0.4) / width, 0, wide / width, side / height))
    shares = [[entries[name]["goes_to"].get(other, 0) / entries[name]["rows"] for other in names] for name in names]
    texts = [
        ["" if name == other else f"{100 * share:.0f}%" for other, share in zip(names, row, strict=True)]
        for name, row in zip(names, shares, strict=True)
    ]
    heatmap(left, shares, texts, names)
    for place in range(len(names)):
        left.add_patch(
            Rectangle(
                (place - 0.5, place - 0.5), 1, 1, facecolor="#DDDDDD", hatch="////", edgecolor="white", linewidth=0
            )
        )
    left.set(title="its test rows go to", ylabel="task left out of the router", xlabel="")
    for place, name in enumerate(names):
        for offset, kind, style in ((-0.18, "new", ORANGE), (0.18, "known", BLUE)):
            _quantiles(right, place + offset, entries[name][kind]["quantiles"], style)
        right.annotate(
            f"{100 * entries[name]['auroc']:.0f}", (1.06, place), va="center", fontsize=9, annotation_clip=False
        )
    right.annotate("AUROC", (1.03, -0.75), va="center", fontsize=8, annotation_clip=False)
    right.set(title="largest probability: 5, 25, 50, 75, 95 % of rows", xlim=(0, 1.02), ylim=(len(names) - 0.5, -0.5))
    right.title.set_fontsize(9)
    left.title.set_fontsize(9)
    right.set_yticks([])
    right.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    right.set_axisbelow(True)
    handles = [
        Patch(label=name, **EDGE, **style)
        for name, style in (("rows of the task left out", ORANGE), ("rows of the others", BLUE))
    ]
    right.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12),
        ncols=1,
        frameon=False,
        fontsize=8,
        borderaxespad=0,
    )
    return "New domain"


def _quantiles(axes: Axes, place: float, values: Sequence[float], style: dict[str, Any]) -> None:
    lowest, low, middle, high, highest = values
    axes.plot([lowest, highest], [place, place], color=style["facecolor"], linewidth=2.0, zorder=2)
    axes.barh(place, high - low, 0.3, left=low, **EDGE, **style, zorder=3)
    axes.plot(
        [middle, middle], [place - 0.15, place + 0.15], color="white", linewidth=3.2, zorder=4, solid_capstyle="butt"
    )
    axes.plot(
        [middle, middle], [place - 0.15, place + 0.15], color="black", linewidth=1.6, zorder=5, solid_capstyle="butt"
    )
