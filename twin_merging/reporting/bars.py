"""One bar chart: a bar a method, oracle and routed heads side by side, the reference as a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

# Okabe and Ito's blue and orange: apart for the colour-blind, and apart in grey as one is dark and one light.
# Hatching tells routed from oracle once more, for print.
STYLES: dict[str, dict[str, Any]] = {
    "oracle": {"facecolor": "#0072B2", "hatch": None},
    "routed": {"facecolor": "#E69F00", "hatch": "///"},
    "none": {"facecolor": "#0072B2", "hatch": None},
}
OTHER_STYLE: dict[str, Any] = {"facecolor": "#999999", "hatch": ".."}
EDGE: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.6}
REFERENCE: dict[str, Any] = {"color": "black", "linestyle": (0, (4, 2)), "linewidth": 1.2}
WARNING: dict[str, Any] = {"fontsize": 8, "style": "italic", "color": "#444444"}
WIDTH, BAR_HEIGHT, GAP = 7.0, 0.26, 0.6  # inches, inches, bars
LABEL_WIDTH = 36  # characters; two lines find room beside one bar
LEFT, RIGHT, TOP, BOTTOM = 1.8, 0.1, 0.5, 0.85  # margins in inches


@dataclass(frozen=True)
class Bar:
    """A value with its interval and the reference it is compared with, all in the units of the axis."""

    label: str
    heads: str
    value: float
    interval: tuple[float, float] | None
    reference: float | None


@dataclass(frozen=True)
class Words:
    """What stands around the bars."""

    title: str
    axis: str
    reference: str
    warning: str | None
    decimals: int


def draw_bars(figure: Figure, bars: Sequence[Bar], words: Words) -> None:
    """Clear the figure and draw the bars, those of one label together, the first label on top."""
    labels = list(dict.fromkeys(bar.label for bar in bars))
    axes = _axes(figure, BAR_HEIGHT * max(len(bars) + GAP * len(labels), 3))
    places, ticks, top = [], [], 0.0
    for label in labels:
        group = [bar for bar in bars if bar.label == label]
        places += [(top + index, bar) for index, bar in enumerate(group)]
        ticks.append(top + (len(group) - 1) / 2)
        top += len(group) + GAP
    for place, bar in places:
        _draw_bar(axes, place, bar, words.decimals)
    _draw_references(axes, places)
    axes.set_yticks(ticks, [fill(label, LABEL_WIDTH) for label in labels])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(max(top - GAP - 0.4, 0.6), -0.6)
    axes.set_xlim(*_limits(bars))
    axes.set_xlabel(words.axis)
    axes.set_title(words.title, pad=18 if words.warning else 8)
    if words.warning:
        above = (0.5, 1.0), (0, 6)
        axes.annotate(
            words.warning, *above, xycoords="axes fraction", textcoords="offset points", ha="center", **WARNING
        )
    _legend(figure, bars, words.reference)


def _axes(figure: Figure, height: float) -> Axes:
    """Axes of this height in inches with margins in inches, however many bars there are."""
    total = TOP + height + BOTTOM
    figure.clear()
    figure.set_size_inches(WIDTH, total)
    return figure.add_axes((LEFT / WIDTH, BOTTOM / total, 1 - (LEFT + RIGHT) / WIDTH, height / total))


def _draw_bar(axes: Axes, place: float, bar: Bar, decimals: int) -> None:
    axes.barh(place, bar.value, height=0.86, **EDGE, **STYLES.get(bar.heads, OTHER_STYLE))
    end = max(bar.value, 0.0)
    if bar.interval:
        ends, end = list(bar.interval), max(end, bar.interval[1])
        # A white line below the black one keeps it visible on a dark bar.
        axes.plot(ends, [place, place], color="white", linewidth=2.6, marker="|", markersize=7, markeredgewidth=2.6)
        axes.plot(ends, [place, place], color="black", linewidth=1.0, marker="|", markersize=6)
    axes.annotate(
        f"{bar.value:.{decimals}f}",
        (end, place),
        (5, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        zorder=5,
    )


def _draw_references(axes: Axes, places: Sequence[tuple[float, Bar]]) -> None:
    """One line if the reference is the same for all, else a piece of it at each bar."""
    known = [(place, bar.reference) for place, bar in places if bar.reference is not None]
    if len(known) == len(places) and len({round(reference, 9) for _, reference in known}) == 1:
        axes.axvline(known[0][1], **REFERENCE)
        return
    for place, reference in known:
        axes.plot([reference, reference], [place - 0.48, place + 0.48], **REFERENCE)


def _limits(bars: Sequence[Bar]) -> tuple[float, float]:
    """From 0, or the lowest value, to the highest, with room for the last value's digits."""
    values = [0.0]
    for bar in bars:
        values += [bar.value, *(bar.interval or ()), *([] if bar.reference is None else [bar.reference])]
    low, high = min(values), max(values)
    return 1.05 * low, high + 0.1 * (high - low or 1.0)


def _legend(figure: Figure, bars: Sequence[Bar], reference: str) -> None:
    handles: list[Any] = [
        Patch(label=f"{heads} heads", **EDGE, **STYLES.get(heads, OTHER_STYLE))
        for heads in dict.fromkeys(bar.heads for bar in bars)
        if heads != "none"
    ]
    handles.append(Line2D([], [], label=reference, **REFERENCE))
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, borderaxespad=0.2)
