import pytest
from synthetic import TASKS, is_drawn, make_result, make_results

from twin_merging.reporting.figures import routing_heatmap, task_bars
from twin_merging.reporting.tables import OFFLINE_WARNING


def test_there_is_a_chart_a_task_and_one_of_the_average(tmp_path):
    paths = task_bars(make_results(), tmp_path)
    names = {path.stem for path in paths}
    assert names == {"average_normalized", *(f"task_{task}" for task in TASKS)}
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert all(is_drawn(path) for path in paths if path.suffix == ".png")


def test_a_chart_names_what_it_shows_in_searchable_text(tmp_path):
    results = make_results()
    task_bars(results, tmp_path)
    text = (tmp_path / "task_bbc.svg").read_text()
    score = f"{100 * results[0]['tasks']['bbc']['raw']:.1f}"
    words = ("bbc", "accuracy", "600", "twin (svd rank 16)", "oracle heads", "routed heads", "finetuned", score)
    assert [word for word in words if f"{word}" not in text] == []
    assert OFFLINE_WARNING in text


def test_without_the_offline_suite_there_is_no_warning(tmp_path):
    task_bars([make_result(offline_suite=False)], tmp_path)
    routing_heatmap(make_result(offline_suite=False), tmp_path)
    assert not any(OFFLINE_WARNING in path.read_text() for path in tmp_path.glob("*.svg"))


def test_the_heat_map_shows_weights_and_counts(tmp_path):
    result = make_result()
    png, svg = routing_heatmap(result, tmp_path, "router")
    assert (png.name, svg.name) == ("router.png", "router.svg")
    assert is_drawn(png)
    text = svg.read_text()
    routing = result["routing"]
    words = [*TASKS, OFFLINE_WARNING, f"{routing['mean_weights'][0][0]:.2f}", str(routing["confusion"][1][1]), "85.0%"]
    assert [word for word in words if word not in text] == []


def test_a_job_without_router_has_no_heat_map(tmp_path):
    with pytest.raises(ValueError, match="no routing"):
        routing_heatmap(make_result(routing=None), tmp_path)


def test_equal_results_give_equal_files(tmp_path):
    for folder in ("a", "b"):
        task_bars(make_results(3), tmp_path / folder)
        routing_heatmap(make_result(), tmp_path / folder)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("missing", ["normalized", "confidence_interval"])
def test_what_is_unknown_is_left_out(tmp_path, missing):
    result = make_result(average_normalized=None)
    result["tasks"]["bbc"][missing] = None
    assert all(is_drawn(path) for path in task_bars([result], tmp_path) if path.suffix == ".png")


def test_scores_below_zero_are_drawn(tmp_path):
    result = make_result(tasks={"cola": "matthews_correlation"})
    result["tasks"]["cola"] |= {"raw": -0.25, "normalized": None, "confidence_interval": [-0.4, -0.1]}
    task_bars([result], tmp_path)
    assert is_drawn(tmp_path / "task_cola.png")
    assert (
        "\u221225.0" in (tmp_path / "task_cola.svg").read_text() or "-25.0" in (tmp_path / "task_cola.svg").read_text()
    )
