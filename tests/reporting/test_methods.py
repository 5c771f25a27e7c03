import numpy as np
import pytest
from scipy import stats
from synthetic import make_result

from twin_merging.reporting.methods import estimate, join_seeds, task_metrics


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_the_interval_is_that_of_scipy(count):
    values = np.random.default_rng(count).normal(80, 3, count)
    low, high = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=stats.sem(values))
    ours = estimate(values.tolist())
    assert ours.mean - ours.half_width == pytest.approx(low, rel=1e-12)
    assert ours.mean + ours.half_width == pytest.approx(high, rel=1e-12)


def test_one_value_has_no_interval_and_a_missing_one_no_mean():
    assert estimate([3.0]).half_width is None
    assert estimate([]) is None
    assert estimate([3.0, None]) is None


def test_only_jobs_that_differ_in_seed_alone_are_joined():
    seeds = [make_result(seed=seed) for seed in range(3)]
    other_heads = make_result(heads="routed")
    other_lr = make_result(provenance={"config": {"lr": 1e-4, "seed": 0}, "overrides": ["lr=1e-4", "seed=0"]})
    methods = join_seeds([*seeds, other_heads, other_lr])
    assert [(method.label, method.heads, method.seeds) for method in methods] == [
        ("twin (svd rank 16)", "oracle", [0, 1, 2]),
        ("twin (svd rank 16)", "routed", [0]),
        ("twin (svd rank 16) [lr=1e-4]", "oracle", [0]),
    ]


def test_where_files_go_does_not_make_another_method():
    jobs = [
        make_result(seed=seed, provenance={"config": {"seed": seed, "paths": {"outputs": str(seed)}}, "overrides": []})
        for seed in range(2)
    ]
    assert len(join_seeds(jobs)) == 1


def test_a_sweep_of_ranks_repeats_what_compresses_nothing():
    jobs = [
        make_result(
            label, provenance={"config": {"sparsifier": {"rank": rank}}, "overrides": [f"sparsifier.rank={rank}"]},
        )
        for label in ("ties", "twin (svd)") for rank in (1, 16)
    ]  # fmt: skip
    methods = join_seeds(jobs)
    expected = [("ties", 1), ("twin (svd) [sparsifier.rank=1]", 0), ("twin (svd) [sparsifier.rank=16]", 0)]
    assert [(method.label, method.repeats) for method in methods] == expected


def test_methods_that_nothing_tells_apart_are_numbered():
    jobs = [make_result(provenance={"config": {"rank": rank}, "overrides": []}) for rank in (1, 2)]
    assert [method.label for method in join_seeds(jobs)] == ["twin (svd rank 16)", "twin (svd rank 16) #2"]


def test_a_repeated_seed_is_no_second_seed():
    first, again = make_result(seconds=1.0), make_result(seconds=2.0)
    (method,) = join_seeds([first, again])
    assert method.seeds == [0]
    assert method.repeats == 1
    assert method.value("seconds").mean == 2.0


def test_the_interval_of_a_task_is_over_seeds_or_over_rows():
    (one,) = join_seeds([make_result()])
    assert list(one.interval("bbc")) == make_result()["tasks"]["bbc"]["confidence_interval"]
    (several,) = join_seeds([make_result(seed=seed) for seed in range(4)])
    raw = several.task_value("bbc", "raw")
    assert several.interval("bbc") == (raw.mean - raw.half_width, raw.mean + raw.half_width)
    assert several.interval("no such task") is None


def test_tasks_keep_the_order_in_which_they_appear():
    results = [make_result(tasks={"b": "f1", "a": "accuracy"}), make_result(tasks={"c": "mse", "a": "accuracy"})]
    assert list(task_metrics(results).items()) == [("b", "f1"), ("a", "accuracy"), ("c", "mse")]
