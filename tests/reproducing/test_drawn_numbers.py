"""What stands in the pictures: every point, bar and cell is the number of the results, with its interval over seeds."""

from __future__ import annotations

import random
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t as student
from test_pictures import TASKS, made_up, made_up_plan

from twin_merging.reproducing import pictures
from twin_merging.reproducing.cells import Cell, Plan

SEEDS = (0, 1, 2)


def drawn(name: str, seeds: tuple[int, ...] = SEEDS) -> tuple[Figure, Plan, dict[str, dict[str, Any]]]:
    plan = made_up_plan(name, Path(), comparable=True)
    cells = tuple(Cell(cell.row, seed, (), cell.run) for cell in plan.cells for seed in seeds)
    plan = Plan(plan.item, plan.suite, (), True, TASKS, cells)
    chance = random.Random(name)
    results = {cell.name: made_up(cell.row, chance) for cell in plan.cells}
    figure = Figure()
    getattr(pictures, plan.item.draw)(figure, plan, results)
    return figure, plan, results


def over_seeds(plan: Plan, results: dict, key: str, **at: Any) -> tuple[float, float]:
    """Mean and half-width of the 95 % interval of the one row at a place."""
    rows = {id(cell.row): cell.row for cell in plan.cells if at.items() <= cell.row.at.items()}
    assert len(rows) == 1, at
    values = [results[cell.name][key] for cell in plan.cells if id(cell.row) in rows]
    return fmean(values), student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))


def lines(axes: Axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By label, the points (n, 2) and the whiskers' half-widths (n)."""
    found = {}
    for container in axes.containers:
        line, _, (bars,) = container.lines
        halves = [(segment[1, 1] - segment[0, 1]) / 2 for segment in bars.get_segments()]
        found[container.get_label()] = line.get_xydata(), np.array(halves)
    return found


def test_figure_4_has_means_and_intervals_on_both_sides():
    figure, plan, results = drawn("figure_4")
    left, right = figure.axes
    assert len(lines(left)) == len(lines(right)) == 6
    for series, (points, halves) in lines(left).items():
        stored, stored_halves = lines(right)[series]
        for place, count in enumerate(range(2, 9)):
            mean, half = over_seeds(plan, results, "average_normalized", series=series, count=count)
            assert points[place] == pytest.approx([count, mean])
            assert halves[place] == stored_halves[place] == pytest.approx(half)
            size, _ = over_seeds(plan, results, "bytes_stored", series=series, count=count)
            assert stored[place] == pytest.approx([size / 1e6, mean])


def test_figure_6_compares_techniques_where_all_have_a_point():
    figure, plan, results = drawn("figure_6")
    left, right = figure.axes
    (points, halves), shown = lines(left)["SVD"], [50, 75, 90, 95, 99]
    assert [text.get_text() for text in left.get_xticklabels()] == ["0", "50", "75", "90", "95", "99", "99.8", "100"]
    assert [text.get_text() for text in right.get_xticklabels()] == [str(x) for x in shown]
    for place, x in enumerate([0, 50, 75, 90, 95, 99, 99.8, 100]):
        mean, half = over_seeds(plan, results, "average_normalized", series="SVD", x=x)
        assert (*points[place], halves[place]) == pytest.approx((place, mean, half))
    assert set(lines(right)) == {"SVD", "Magnitude", "Bernoulli Dropout"}
    for series, (points, halves) in lines(right).items():
        for place, x in enumerate(shown):
            mean, half = over_seeds(plan, results, "average_normalized", series=series, x=x)
            assert (*points[place], halves[place]) == pytest.approx((place, mean, half))


def test_figure_3_has_raw_scores_by_epoch_and_normalized_ones_by_sparsity():
    figure, plan, results = drawn("figure_3")
    left, right = figure.axes
    assert set(lines(left)) == {"Fine-tuned", "Task Arithmetic"}
    for series, (points, halves) in lines(left).items():
        for place, epochs in enumerate([1, 2, 5, 10, 20]):
            mean, half = over_seeds(plan, results, "average_raw", series=series, epochs=epochs)
            assert (*points[place], halves[place]) == pytest.approx((epochs, mean, half))
    points, _ = lines(right)["one expert"]
    assert points[3] == pytest.approx(
        [3, over_seeds(plan, results, "average_normalized", series="one expert", x=90)[0]]
    )
    (level,) = {y for line in right.lines for y in line.get_ydata() if line.get_label() == "all experts merged"}
    assert level == pytest.approx(over_seeds(plan, results, "average_normalized", series="all experts merged")[0])


def test_one_seed_has_no_whiskers():
    figure, _, _ = drawn("figure_4", seeds=(0,))
    assert all(not container.has_yerr for container in figure.axes[0].containers)


def test_figure_7_is_each_tasks_difference_from_the_base_scaled_to_its_largest():
    figure, plan, results = drawn("figure_7", seeds=(0,))
    panels = figure.axes[: len(TASKS)]
    assert [axes.get_title() for axes in panels] == [plan.item.task_heads[task] for task in TASKS]
    raw = {(cell.row.at["gamma_cola"], cell.row.at["gamma_sst2"]): results[cell.name]["tasks"] for cell in plan.cells}
    for task, axes in zip(TASKS, panels, strict=True):
        change = {place: tasks[task]["raw"] - raw[0, 0][task]["raw"] for place, tasks in raw.items()}
        largest = max(map(abs, change.values()))
        (image,) = axes.images
        assert image.origin == "lower"
        found = image.get_array()
        gammas = [-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2]
        for column, cola in enumerate(gammas):
            for line, sst2 in enumerate(gammas):
                assert found[line, column] == pytest.approx(change[cola, sst2] / largest)
        signs = {text.get_position(): text.get_text() for text in axes.texts}
        assert signs[(0, 8)] == ("+" if change[-2, 2] > 0 else "−")
    assert panels[-1].get_xlabel() == "γ of CoLA"
    assert panels[4].get_ylabel() == "γ of SST-2"


def test_figure_5a_has_a_row_for_each_number_of_experts():
    figure, plan, results = drawn("figure_5a", seeds=(0,))
    (axes,) = figure.axes
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    for line, cell in enumerate(plan.cells):
        routing, known = results[cell.name]["routing"], cell.row.at["experts"]
        weights = routing["mean_weights"][-1] if known == 7 else routing["unseen"]["qnli"]
        for column in range(7):
            assert shown[column, line] == (f"{weights[column]:.2f}" if column < known else "·")


def test_figure_2b_has_a_bar_for_each_method_and_task():
    figure, plan, results = drawn("figure_2b")
    (axes,) = figure.axes
    bars = [container for container in axes.containers if hasattr(container, "patches")]
    assert [container.get_label() for container in bars] == [row.head for row in plan.rows]
    for row, container in zip(plan.rows, bars, strict=True):
        for task, patch in zip(TASKS, container.patches, strict=True):
            raw = [100 * results[cell.name]["tasks"][task]["raw"] for cell in plan.cells if cell.row is row]
            assert patch.get_height() == pytest.approx(fmean(raw))


def test_figure_5b_has_a_row_for_each_task():
    figure, _, results = drawn("figure_5b", seeds=(0,))
    (axes,) = figure.axes
    (result,) = results.values()
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    routing = result["routing"]
    rows = [*zip(routing["task_names"], routing["mean_weights"], strict=True), *routing["unseen"].items()]
    assert len({tuple(weights) for _, weights in rows}) == len(rows)  # so that no row stands for another
    assert [text.get_text() for text in axes.get_yticklabels()] == [name for name, _ in rows]
    assert shown == {
        (column, line): f"{weight:.2f}"
        for line, (_, weights) in enumerate(rows)
        for column, weight in enumerate(weights)
    }


def test_figure_2a_has_a_point_for_each_method():
    figure, plan, results = drawn("figure_2a")
    (axes,) = figure.axes
    points = lines(axes)
    assert list(points) == [row.head for row in plan.rows]
    for row in plan.rows:
        own = [results[cell.name] for cell in plan.cells if cell.row is row]
        size = max(sum(part["parameters"] for part in result["costs"]["stored"].values()) for result in own)
        values = [result["average_normalized"] for result in own]
        mean, half = fmean(values), student.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3)
        (point,), (whisker,) = points[row.head]
        assert (*point, whisker) == pytest.approx((size / 1e6, mean, half))
