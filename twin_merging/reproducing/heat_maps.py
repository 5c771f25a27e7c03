"""The paper's figures that are grids of numbers: what is routed where, and scores over two weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from twin_merging.reproducing.cells import Plan
from twin_merging.reproducing.item import Row

Results = dict[str, dict[str, Any]]
WIDEST = 12  # letters of a name that fit below a cell


def results_of(plan: Plan, results: Results, row: Row) -> list[dict[str, Any]]:
    """The results that a row has, one a seed."""
    return [results[cell.name] for cell in plan.cells if cell.row is row and cell.name in results]


def routing_of(figure: Figure, plan: Plan, results: Results) -> None:
    """Mean weight of each expert on one task's rows, a row a number of experts (Figure 5a)."""
    task, rows = plan.item.settings["task"], []
    for row in plan.rows:
        for result in results_of(plan, results, row)[:1]:
            routing = result["routing"]
            names = routing["task_names"]
            weights = routing["mean_weights"][names.index(task)] if task in names else routing["unseen"][task]
            rows.append((row.head_on(plan.suite), dict(zip(names, weights, strict=True))))
    _weights(figure, plan, rows, f"mean routing weight on {plan.item.task_heads.get(task, task)} rows, by expert")


def routing_matrix(figure: Figure, plan: Plan, results: Results) -> None:
    """Mean weight of each expert on each task's rows, a row a task (Figure 5b)."""
    rows = []
    for result in [found for row in plan.rows for found in results_of(plan, results, row)][:1]:
        routing = result["routing"]
        names = routing["task_names"]
        for task, weights in [
            *zip(names, routing["mean_weights"], strict=True),
            *(routing.get("unseen") or {}).items(),
        ]:
            rows.append((plan.item.task_heads.get(task, task), dict(zip(names, weights, strict=True))))
    _weights(figure, plan, rows, "mean routing weight on a task's prompts, by expert")


def _weights(figure: Figure, plan: Plan, rows: list[tuple[str, dict[str, float]]], label: str) -> None:
    """A cell an expert, in which its mean weight stands; · where it is not among those that are routed to."""
    experts = max((list(weights) for _, weights in rows), key=len)
    figure.set_size_inches(max(0.8 * len(experts) + 1.2, 4), 0.5 * len(rows) + 0.8)
    axes = figure.subplots()
    values = np.array([[weights.get(name, np.nan) for name in experts] for _, weights in rows])
    axes.imshow(np.ma.masked_invalid(values), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (place, column), value in np.ndenumerate(values):
        text, colour = (f"{value:.2f}", "white" if value > 0.55 else "black") if value == value else ("·", "#888888")
        axes.text(column, place, text, ha="center", va="center", color=colour, fontsize=8)
    heads = [plan.item.task_heads.get(name, name) for name in experts]
    longest = max(map(len, heads))
    tilted: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if longest > WIDEST else {}
    axes.set_xticks(range(len(experts)), heads, **tilted)
    axes.set_yticks(range(len(rows)), [head for head, _ in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(label)


def gamma_grid(figure: Figure, plan: Plan, results: Results) -> None:
    """A panel a task: the score's difference from θ₀'s, scaled to [−1, 1], over γ of two experts (Figure 7).

    Blue is better than the pretrained model and red is worse, as in the paper; the sign is printed in each cell for grey.
    """
    xs, ys = (sorted({row.at[key] for row in plan.rows}) for key in ("gamma_cola", "gamma_sst2"))
    columns = 4
    lines = -(-len(plan.tasks) // columns)
    figure.set_size_inches(2.5 * columns, 2.6 * lines)
    panels = figure.subplots(lines, columns, squeeze=False, gridspec_kw={"wspace": 0.3, "hspace": 0.42})
    image = None
    for task, axes in zip(plan.tasks, panels.flat, strict=False):
        grid = np.full((len(ys), len(xs)), np.nan)
        for row in plan.rows:
            for result in results_of(plan, results, row)[:1]:
                grid[ys.index(row.at["gamma_sst2"]), xs.index(row.at["gamma_cola"])] = result["tasks"][task]["raw"]
        change = grid - grid[ys.index(0), xs.index(0)]
        largest = np.nanmax(np.abs(change)) if np.isfinite(change).any() else 0
        scaled = np.ma.masked_invalid(change / largest if largest > 0 else change)
        image = axes.imshow(scaled, cmap="RdBu", vmin=-1, vmax=1, origin="lower")
        for (line, column), value in np.ndenumerate(scaled.filled(np.nan)):
            if abs(value) > 0.02:
                colour = "white" if abs(value) > 0.6 else "black"
                axes.text(column, line, "+" if value > 0 else "−", ha="center", va="center", fontsize=6, color=colour)
        shown = range(0, len(xs), 2)
        axes.set_xticks(shown, [f"{xs[place]:g}" for place in shown])
        axes.set_yticks(range(0, len(ys), 2), [f"{ys[place]:g}" for place in range(0, len(ys), 2)])
        axes.set_title(plan.item.task_heads.get(task, task), fontsize="medium")
    for axes in panels[-1]:
        axes.set_xlabel("γ of CoLA")
    for axes in panels[:, 0]:
        axes.set_ylabel("γ of SST-2")
    if image is not None:
        bar = figure.colorbar(image, ax=panels.ravel().tolist(), fraction=0.02, pad=0.02)
        bar.set_label("difference from the pretrained model, scaled")
