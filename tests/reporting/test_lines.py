"""Lines of a sweep: one for each combination of all that varies but a number and the seed."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from synthetic import make_result

from twin_merging.reporting.figures import sweep_lines
from twin_merging.reporting.lines import draw_lines, lines_by_key


def job(method: str, rank: int, seed: int = 0, heads: str = "oracle", average: float = 90.0, **more):
    config = {
        "seed": seed, "paths": {"outputs": str(seed)}, "sparsifier": {"name": "svd", "rank": rank},
        "merge_method": {"name": method, **more}, "evaluation": {"heads": heads},
    }  # fmt: skip
    changes = {"merge_method": method, "average_normalized": average}
    return make_result(f"{method} (svd rank {rank})", heads, seed, provenance={"config": config}, **changes)


def test_a_line_a_method_and_heads_over_seeds():
    results = [
        job(method, rank, seed, heads, average=rank + seed)
        for method in ("ties", "twin")
        for heads in ("oracle", "routed")
        for rank in (16, 1)
        for seed in (0, 2)
    ]
    found = lines_by_key(results)
    assert list(found) == ["sparsifier.rank"]
    assert [(line.label, line.heads) for line in found["sparsifier.rank"]] == [
        ("ties", "oracle"), ("ties", "routed"), ("twin", "oracle"), ("twin", "routed"),
    ]  # fmt: skip
    for line in found["sparsifier.rank"]:
        assert [(value, point.mean) for value, point in line.points] == [(1, 2), (16, 17)]
        assert line.points[0][1].half_width == pytest.approx(12.706, abs=1e-3)  # t(0.975, 1) · 1


def test_two_numbers_make_a_chart_each_and_tell_the_lines_apart():
    results = [job("twin", rank, scaling=scaling) for rank in (1, 16) for scaling in (0.3, 1.0)]
    found = lines_by_key(results)
    assert [line.label for line in found["sparsifier.rank"]] == [
        "twin (merge_method.scaling=0.3)",
        "twin (merge_method.scaling=1.0)",
    ]
    assert [line.label for line in found["merge_method.scaling"]] == [
        "twin (sparsifier.rank=1)",
        "twin (sparsifier.rank=16)",
    ]


def test_no_two_of_many_lines_look_alike():
    results = [job(f"method{number}", rank, average=number) for number in range(12) for rank in (1, 16)]
    figure = Figure()
    draw_lines(figure, "sparsifier.rank", lines_by_key(results)["sparsifier.rank"], None)
    drawn = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2 and line.get_marker() != "None"]
    assert len(drawn) == len({(line.get_color(), line.get_marker()) for line in drawn}) == 12


def test_what_is_no_sweep_over_a_number_has_no_line(tmp_path: Path):
    own_defaults = [job("ties", 1, scaling=1.0), job("task_arithmetic", 1, scaling=0.3)]
    assert lines_by_key(own_defaults) == {}
    assert lines_by_key([job("twin", 1, seed) for seed in (0, 1)]) == {}
    assert lines_by_key([job("twin", 1), job("twin", 4, average=None)]) == {}
    assert sweep_lines(own_defaults, tmp_path) == []


def test_the_chart_names_what_it_shows(tmp_path: Path):
    results = [job(method, rank, average=80 + rank / 10) for method in ("ties", "twin") for rank in (1, 16, 76)]
    png, svg = sweep_lines(results, tmp_path)
    assert (png.name, svg.name) == ("sweep_sparsifier.rank.png", "sweep_sparsifier.rank.svg")
    text = svg.read_text()
    words = (
        "sparsifier.rank",
        "ties, oracle heads",
        "twin, oracle heads",
        ">76<",
        "finetuned experts",
        "offline suite",
    )
    assert [word for word in words if word not in text] == []
