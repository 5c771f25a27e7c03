"""Pictures of which classes of a task are taken for which. PNG and SVG.

Importing this file imports matplotlib.
"""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from twin_merging.reporting.bars import EDGE, STYLES
from twin_merging.reporting.figures import headline, heatmap, save, slug, styled
from twin_merging.reporting.looks import CONFUSION
from twin_merging.reporting.tables import warning_of

FEW = 4  # classes whose rows are shorter than the words beside them
SQUARE = 30  # classes up to which the whole matrix is drawn
CELL, TOP, LINE, WIDE, BELOW = 0.36, 0.62, 0.24, 3.0, 0.75  # inches
LONGEST = 28  # letters of a class's name
NONE = "no class of the task"
SHADES = ("#D55E00", "#E69F00", "#F5D09A", "#DDDDDD")  # of the most frequent wrong answers, and of all others


def class_figures(result: dict[str, Any], tasks: dict[str, Any], folder: Path) -> list[Path]:
    """One picture a task, ``confusion_TASK``: the matrix of up to ``SQUARE`` classes; of more, those of lowest accuracy.

    Args:
        tasks: what ``confusion.json`` says of each.
    """
    paths = []
    with styled() as figure:
        for task, record in tasks.items():
            figure.clear()
            small = len(record["classes"]) <= SQUARE and record["matrix"] is not None
            (_matrix if small else _worst)(figure, record)
            heads = "" if result["heads"] == "none" else f", {result['heads']} heads"
            right, rows = sum(record["right"]), sum(record["rows"])
            title = f"{task}: {100 * right / max(rows, 1):.1f} % of {rows:,} test rows right"
            _title(figure, title, f"{result['label']}{heads}, seed {result['seed']}", warning_of([result]))
            paths += save(figure, folder, f"{CONFUSION}_{slug(task)}")
    return paths


def _matrix(figure: Figure, record: dict[str, Any]) -> None:
    """Counts of true class × answer; a cell is the darker, the larger the share of its row, from 0 as the root of it."""
    names = [cut(name) for name in record["classes"]]
    columns, counts = list(names), [list(row) for row in record["matrix"]]
    if any(record["no_answer"]):
        columns.append(NONE)
        counts = [[*row, missing] for row, missing in zip(counts, record["no_answer"], strict=True)]
    shades = [[sqrt(count / max(sum(row), 1)) for count in row] for row in counts]
    texts = [[str(count or "") for count in row] for row in counts]
    width, height = CELL * len(columns), CELL * len(names)
    total = height + TOP
    figure.set_size_inches(width, total)
    axes = figure.add_axes((0, 0, 1, height / total))
    heatmap(axes, shades, texts, names)
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    shares = [f"{name}   {_percent(share)}" for name, share in zip(names, record["accuracy"], strict=True)]
    axes.set_yticks(range(len(names)), shares)
    axes.set_xlabel("answer, in test rows")
    axes.set_ylabel("true class, % right", loc="center" if len(names) > FEW else "top")  # which is longer than few rows


def _worst(figure: Figure, record: dict[str, Any]) -> None:
    """Of the classes with the lowest accuracy: the share that is right, and what the others are taken for."""
    worst = record["worst"]
    tall = LINE * max(len(worst), 1)
    total = TOP + 0.2 + tall + BELOW
    figure.set_size_inches(WIDE, total)
    axes = figure.add_axes((0, BELOW / total, 1, tall / total))
    for place, entry in enumerate(worst):
        rows = entry["rows"]
        right = round(entry["accuracy"] * rows)
        mistakes = [mistake["rows"] for mistake in entry["answers"]]
        parts = [right, *mistakes, *[0] * (len(SHADES) - 1 - len(mistakes)), rows - right - sum(mistakes)]
        left = 0.0
        for part, colour in zip(parts, (STYLES["oracle"]["facecolor"], *SHADES), strict=True):
            axes.barh(place, part / rows, 0.8, left=left, facecolor=colour, **EDGE)
            left += part / rows
        words = ", ".join(f"{cut(mistake['answer'] or NONE)} ({mistake['rows']})" for mistake in entry["answers"])
        axes.annotate(words, (1, place), (6, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(worst)), [f"{cut(each['true'])}   {_percent(each['accuracy'])}" for each in worst])
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 1), ylim=(max(len(worst), 1) - 0.5, -0.5), xlabel="share of the class's test rows")
    about = f"the {len(worst)} of {len(record['classes'])} classes with the lowest accuracy, and what they are taken for (rows)"
    axes.annotate(about, (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", fontsize=8)
    meanings = ["right", "most frequent wrong answer", "second", "third", "others"]
    colours = (STYLES["oracle"]["facecolor"], *SHADES)
    handles = [Patch(label=word, facecolor=colour, **EDGE) for word, colour in zip(meanings, colours, strict=True)]
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, -0.5 / tall), ncols=5, frameon=False, fontsize=8,
        borderaxespad=0, columnspacing=1.2, handlelength=1.4,
    )  # fmt: skip


def cut(name: str, longest: int = LONGEST) -> str:
    """A name of at most so many letters."""
    return name if len(name) <= longest else name[: longest - 1].rstrip() + "…"


def _percent(share: float | None) -> str:
    return "no rows" if share is None else f"{100 * share:.0f}%"


def _title(figure: Figure, title: str, below: str, warning: str | None) -> None:
    headline(figure, title, f"{below}\n{warning}" if warning else below)
