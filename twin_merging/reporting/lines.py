"""Average scores of a sweep against a number that it varies: which lines there are, and how they are drawn."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from twin_merging.reporting.bars import WARNING
from twin_merging.reporting.methods import IRRELEVANT, Estimate, estimate

# Okabe and Ito's colours without the yellow, which does not print; markers tell lines apart once more in grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = {"oracle": "-", "routed": (0, (4, 2))}
WIDE = 8  # a range of values this many times its lowest is drawn on a logarithmic axis
WIDTH, HEIGHT, LABEL_WIDTH = 5.2, 3.4, 40  # inches, inches, characters


@dataclass(frozen=True)
class Line:
    """One method's average at each value, over seeds."""

    label: str
    heads: str
    points: tuple[tuple[float, Estimate], ...]


def lines_by_key(results: Sequence[dict[str, Any]]) -> dict[str, list[Line]]:
    """For every key whose number varies from job to job, a line for each combination of all else but the seed.

    Combinations with one value alone have no line, and a key without any line is left out.
    """
    settings = [_settings(result) for result in results]
    keys = list(dict.fromkeys(key for each in settings for key in each))
    varying = [key for key in keys if len({json.dumps(each.get(key)) for each in settings}) > 1]
    found = {key: _lines(key, results, settings) for key in varying if _is_numeric(key, settings)}
    return {key: lines for key, lines in found.items() if lines}


def draw_lines(figure: Figure, key: str, lines: Sequence[Line], warning: str | None) -> None:
    """Clear the figure and draw the lines with their legend beside them."""
    figure.clear()
    figure.set_size_inches(WIDTH, HEIGHT)
    axes = figure.add_axes((0, 0, 1, 1))
    labels = list(dict.fromkeys(line.label for line in lines))
    for line in lines:
        _draw(axes, line, *_look(labels.index(line.label)))
    _scale(axes, sorted({value for line in lines for value, _ in line.points}))
    axes.axhline(100, color="black", linestyle=(0, (1, 2)), linewidth=1, label="finetuned experts", zorder=1)
    spread = any(point.half_width is not None for line in lines for _, point in line.points)
    axes.set_xlabel(key)
    axes.set_ylabel("average normalized score" + ("\n(bars: 95 % confidence over seeds)" if spread else ""))
    axes.set_title(f"average over tasks by {key}", pad=18 if warning else 8)
    axes.grid(axis="y", linewidth=0.4, color="#cccccc")
    if warning:
        above = (0.5, 1.0), (0, 6)
        axes.annotate(warning, *above, xycoords="axes fraction", textcoords="offset points", ha="center", **WARNING)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, borderaxespad=0)


def _look(number: int) -> tuple[str, str]:
    """Colour and marker: where colours begin again, markers have moved on by one, so that no two lines look alike."""
    return COLOURS[number % len(COLOURS)], MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]


def _draw(axes: Axes, line: Line, colour: str, marker: str) -> None:
    values = [value for value, _ in line.points]
    means = [point.mean for _, point in line.points]
    style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.4}
    style["linestyle"] = DASHES.get(line.heads, "-")
    style["label"] = fill(line.label + ("" if line.heads == "none" else f", {line.heads} heads"), LABEL_WIDTH)
    if line.heads == "routed":
        style["markerfacecolor"] = "white"
    spreads = [point.half_width or 0.0 for _, point in line.points]
    axes.errorbar(values, means, yerr=spreads if any(spreads) else None, capsize=3, elinewidth=0.9, **style)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """A tick at each value, on a logarithmic axis where they spread over magnitudes."""
    if values[0] > 0 and values[-1] / values[0] >= WIDE:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    if len(values) <= 12:
        axes.set_xticks(values, [f"{value:g}" for value in values])


def _lines(key: str, results: Sequence[dict[str, Any]], settings: Sequence[dict[str, Any]]) -> list[Line]:
    scores: dict[str, dict[float, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    groups: dict[str, tuple[str, str, dict[str, Any]]] = {}
    for result, own in zip(results, settings, strict=True):
        if own.get(key) is None or result["average_normalized"] is None:
            continue
        group = result["merge_method"], result["heads"], {name: own[name] for name in own if name != key}
        identity = json.dumps(group, sort_keys=True)
        groups[identity] = group
        scores[identity][own[key]][result["seed"]] = result["average_normalized"]
    lines = []
    for identity, (method, heads, rest) in groups.items():
        points = [(value, estimate(list(seeds.values()))) for value, seeds in sorted(scores[identity].items())]
        known = tuple((float(value), point) for value, point in points if point is not None)
        if len(known) > 1:
            rivals = [other for name, _, other in groups.values() if name == method]
            lines.append(Line(_label(method, rest, rivals), heads, known))
    return lines


def _label(method: str, rest: dict[str, Any], rivals: Sequence[dict[str, Any]]) -> str:
    """The method, and in what this line differs from the others of the same method."""
    common = [name for name in rest if name != "evaluation.heads" and all(name in rival for rival in rivals)]
    differing = [name for name in common if len({json.dumps(rival[name]) for rival in rivals}) > 1]
    shown = [f"{name.removesuffix('.name')}={rest[name]}" for name in differing]
    return f"{method} ({', '.join(shown)})" if shown else method


def _settings(result: dict[str, Any]) -> dict[str, Any]:
    """A job's configuration by dotted key, without what cannot change a result."""
    config = result["provenance"].get("config") or {}
    return _flat({key: value for key, value in config.items() if key not in IRRELEVANT}, "")


def _flat(config: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _is_numeric(key: str, settings: Sequence[dict[str, Any]]) -> bool:
    """Whether a key has several numbers and nothing else where it is set."""
    values = [each[key] for each in settings if each.get(key) is not None]
    return all(_is_number(value) for value in values) and len(set(values)) > 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
