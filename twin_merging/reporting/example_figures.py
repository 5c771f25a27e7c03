"""A grid of test images with their true class, their answer, and where the router sent them. PNG and SVG.

Importing this file imports matplotlib.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from twin_merging.reporting.class_figures import cut
from twin_merging.reporting.figures import headline, save, styled
from twin_merging.reporting.looks import EXAMPLES
from twin_merging.reporting.tables import warning_of
from twin_merging.reporting.unknown_figures import COLOURS

SIDE, COLUMN, LINE, BAR, SPACE = 0.95, 1.3, 0.14, 0.09, 0.22  # inches: image, column, line of text, bar, between lines
LEFT, APART, MARGIN, TOP = (
    1.15,
    0.25,
    0.03,
    0.85,
)  # inches: names of tasks, between kinds and blocks, edge, title and legend
COLUMNS = 8  # of images; tasks with fewer examples stand side by side
LETTERS = 22
CLASS = 18  # letters of a class, of which capitals fill a column
SEEN = 0.003  # the smallest weight of which a bar shows anything
GOOD, BAD = "#00704A", "#C0392B"
HATCHES = ("", "////", "....", "xxxx")  # of the tasks that must share a colour
KINDS = {"drawn": "its first test rows", "wrong": "others that went wrong"}


def example_figure(result: dict[str, Any], about: dict[str, Any], thumbnails: Path, folder: Path) -> list[Path]:
    """``examples``: of each task, left, rows that are drawn whatever came of them; right, some of those that went wrong.

    Below an image: its true class; whether the answer is right, or which it is; w(x) as a bar in the tasks' colours; and
    the top task with its weight.

    Args:
        about: what ``examples.json`` says.
        thumbnails: the picture that it refers to.
    """
    examples, names = about["examples"], about["tasks"]
    squares = _squares(thumbnails, about["side"], about["columns"], len(examples))
    grid = _Grid(examples)
    with styled() as figure:
        top = TOP + LINE * -(-len(names) // _in_line(names, grid.width))
        figure.set_size_inches(grid.width, grid.height + top)
        axes = figure.add_axes((0, 0, 1, grid.height / (grid.height + top)))
        for square, example in zip(squares, examples, strict=True):
            _draw(axes, *grid.next_place(example["task"], example["kind"]), square, example, names)
        for task in grid.tasks:
            x, y = grid.corner(task)
            axes.text(x, y + SIDE / 2, cut(task, LETTERS), va="center", fontsize=9, fontweight="bold")
        for x, kind in grid.heads():
            axes.text(x, -0.08, KINDS[kind], fontsize=8, style="italic")
        axes.set(xlim=(0, grid.width), ylim=(grid.height, 0))
        axes.set_axis_off()
        _legend(figure, names, grid.width)
        heads = f"{result['heads']} heads, seed {result['seed']}"
        headline(figure, f"Routed examples: {result['label']}, {heads}", warning_of([result]))
        return save(figure, folder, EXAMPLES)


class _Grid:
    """Where examples stand, in inches from the upper left corner: a line a task, in as many blocks as find room."""

    def __init__(self, examples: list[dict[str, Any]]):
        placed = Counter((example["task"], example["kind"]) for example in examples)
        self.tasks = list(dict.fromkeys(example["task"] for example in examples))
        self._most = {kind: max(placed[task, kind] for task in self.tasks) for kind in KINDS}
        self._blocks = min(max(COLUMNS // sum(self._most.values()), 1), len(self.tasks))
        self._starts = {"drawn": LEFT, "wrong": LEFT + self._most["drawn"] * COLUMN + APART * bool(self._most["drawn"])}
        self._block = self._starts["wrong"] + self._most["wrong"] * COLUMN + APART
        self._line = SIDE + 3 * LINE + BAR + SPACE
        self._filled: Counter[tuple[str, str]] = Counter()
        self.width = self._blocks * self._block - APART - (COLUMN - SIDE) + MARGIN
        self.height = -(-len(self.tasks) // self._blocks) * self._line

    def corner(self, task: str) -> tuple[float, float]:
        """Where a task's line begins, with its name."""
        line, block = divmod(self.tasks.index(task), self._blocks)
        return block * self._block, line * self._line

    def next_place(self, task: str, kind: str) -> tuple[float, float]:
        """The corner of a task's next image of a kind."""
        (x, y), number = self.corner(task), self._filled[task, kind]
        self._filled[task, kind] += 1
        return x + self._starts[kind] + number * COLUMN, y

    def heads(self) -> list[tuple[float, str]]:
        """Where the columns of each kind begin."""
        kinds = [(start, kind) for kind, start in self._starts.items() if self._most[kind]]
        return [(block * self._block + start, kind) for block in range(self._blocks) for start, kind in kinds]


def _draw(axes: Axes, x: float, y: float, square: np.ndarray, example: dict[str, Any], names: list[str]) -> None:
    axes.imshow(square, extent=(x, x + SIDE, y + SIDE, y), aspect="auto", interpolation="nearest")
    axes.add_patch(Rectangle((x, y), SIDE, SIDE, facecolor="none", edgecolor="#999999", linewidth=0.5))
    below = y + SIDE + 0.04
    answer = "✓" if example["right"] else f"✗ {cut(example['answer'] or 'no class of it', CLASS - 2)}"
    words: dict[str, Any] = {"va": "top", "fontsize": 7}
    axes.text(x, below, cut(example["class"], CLASS), **words)
    axes.text(x, below + LINE, answer, color=GOOD if example["right"] else BAD, **words)
    bar, left = below + 2 * LINE + 0.01, x
    for index, weight in enumerate(example["weights"]):
        if weight >= SEEN:
            axes.add_patch(Rectangle((left, bar), SIDE * weight, BAR, **_style(index), linewidth=0))
        left += SIDE * weight
    axes.add_patch(Rectangle((x, bar), SIDE, BAR, facecolor="none", edgecolor="black", linewidth=0.5))
    top = example["top_task"]
    strange = example["task"] in names and top != example["task"]
    sent = f"→ {cut(top, LETTERS - 7)} {max(example['weights']):.2f}"
    axes.text(x, bar + BAR + 0.035, sent, color=BAD if strange else "black", **words)


def _squares(path: Path, side: int, columns: int, count: int) -> list[np.ndarray]:
    """The images that lie in one picture, (side, side, 3) each."""
    from PIL import Image

    with Image.open(path) as picture:
        sheet = np.asarray(picture.convert("RGB"))
    places = [divmod(place, columns) for place in range(count)]
    return [sheet[line * side : (line + 1) * side, column * side : (column + 1) * side] for line, column in places]


def _style(index: int) -> dict[str, Any]:
    again, place = divmod(index, len(COLOURS))
    return {"facecolor": COLOURS[place], "hatch": HATCHES[again % len(HATCHES)], "edgecolor": "white"}


def _in_line(names: list[str], width: float) -> int:
    """How many tasks a line of the legend has room for."""
    longest = min(max(map(len, names)), LETTERS)
    return max(int(width / (0.065 * longest + 0.4)), 1)


def _legend(figure: Figure, names: list[str], width: float) -> None:
    handles = [Patch(label=cut(name, LETTERS), **_style(index), linewidth=0) for index, name in enumerate(names)]
    figure.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, 1 - 0.5 / figure.get_figheight()), ncols=_in_line(names, width),
        frameon=False, fontsize=8, borderaxespad=0, handlelength=1.2, columnspacing=1.2, labelspacing=0.25,
    )  # fmt: skip
