"""A command line becomes checked jobs, or an error that says which word of it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from twin_merging.compose import cache_folder, composer, plan
from twin_merging.errors import UserError
from twin_merging.overrides import compose_config, parse

ONE_TASK = "tasks.names=[cola]"


def refused(*overrides: str, multirun: bool = False) -> UserError:
    with pytest.raises(UserError) as caught:
        plan(list(overrides), multirun)
    return caught.value


def test_one_job():
    launch = plan([ONE_TASK, "seed=7"], multirun=False)
    (run,) = launch.jobs
    assert (run.seed, run.tasks.names, launch.multirun) == (7, ["cola"], False)
    assert launch.folder.parts[:3] == ("outputs", "runs", "custom")
    assert launch.overrides[-1] == f"hydra.run.dir='{launch.folder}'"


def test_no_two_runs_share_a_folder():
    assert plan([ONE_TASK], False).folder != plan([ONE_TASK], False).folder


def test_an_experiments_own_sweep_is_expanded():
    launch = plan(["+exp=quickstart"], multirun=False)
    assert launch.multirun
    assert {(run.merge_method.name, run.evaluation.heads) for run in launch.jobs} == {
        (method, heads)
        for method in ("pretrained", "finetuned", "weight_averaging", "task_arithmetic", "twin")
        for heads in ("oracle", "routed")
    }
    assert launch.folder.parts[:3] == ("outputs", "multiruns", "quickstart")


def test_a_value_on_the_command_line_replaces_the_experiments_sweep_of_that_key():
    launch = plan(["+exp=quickstart", "merge_method=twin", "seed=0,1"], multirun=True)
    assert [(run.merge_method.name, run.evaluation.heads, run.seed) for run in launch.jobs] == [
        ("twin", "oracle", 0),
        ("twin", "oracle", 1),
        ("twin", "routed", 0),
        ("twin", "routed", 1),
    ]


def test_a_sweep_makes_every_combination():
    launch = plan([ONE_TASK, "merge_method=twin,pretrained", "seed=0,1"], multirun=True)
    assert sorted((run.merge_method.name, run.seed) for run in launch.jobs) == [
        ("pretrained", 0), ("pretrained", 1), ("twin", 0), ("twin", 1),
    ]  # fmt: skip


def test_a_key_that_all_options_of_a_sweep_have_is_known_though_the_default_option_has_it_not():
    launch = plan([ONE_TASK, "merge_method=tsv_merge,iso_c", "merge_method.matrices=[.*layer.*]"], multirun=True)
    assert [(run.merge_method.name, run.merge_method.matrices) for run in launch.jobs] == [
        ("tsv_merge", [".*layer.*"]), ("iso_c", [".*layer.*"]),
    ]  # fmt: skip
    with composer():  # as Hydra does before its sweeper is asked
        compose_config([each.input_line for each in parse(launch.overrides) if not each.is_sweep_override()])
    error = refused(ONE_TASK, "merge_method=tsv_merge,pretrained", "merge_method.matrices=[x]", multirun=True)
    assert error.key == "merge_method.matrices"


def test_several_values_without_a_sweep():
    error = refused(ONE_TASK, "seed=0,1")
    assert error.key == "seed"
    assert "-m" in error.hint


def test_the_shared_expert_can_be_another_option():
    (run,) = plan([ONE_TASK, "merge_method@merge_method.shared=weight_averaging"], False).jobs
    assert run.merge_method.shared.name == "weight_averaging"


OPTIONS = [("merge_method", "twn", "twin"), ("tracker", "jsnl", "jsonl"), ("backbone", "minlm", "minilm")]


@pytest.mark.parametrize(("group", "given", "nearest"), OPTIONS)
def test_an_unknown_option_lists_the_groups(group, given, nearest):
    error = refused(f"{group}={given}")
    assert (error.message, error.key, error.found, error.nearest) == ("unknown option", group, given, nearest)
    assert nearest in error.expected


def test_an_unknown_experiment_lists_the_known():
    error = refused("+exp=quickstrat")
    assert (error.key, error.found, error.nearest) == ("exp", "quickstrat", "quickstart")


def test_an_experiment_is_added():
    error = refused("exp=quickstart")
    assert error.key == "exp"
    assert "+exp=" in error.hint


def test_an_unknown_option_in_a_sweep_is_found_before_any_job_runs():
    error = refused("merge_method=twin,tiwn", multirun=True)
    assert (error.key, error.found, error.nearest) == ("merge_method", "tiwn", "twin")


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("merge_metod=twin", "merge_metod", "merge_method"),
        ("router.epoch=3", "router.epoch", "epochs"),
        ("tasks.rows.trian=3", "tasks.rows.trian", "train"),
        ("+sed=1", "sed", "seed"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(override, key, nearest):
    error = refused(ONE_TASK, override)
    assert (error.message, error.key, error.nearest) == ("unknown key", key, nearest)
    assert error.found is not None
    assert nearest in error.expected


def test_the_wrong_one_of_several_is_named():
    error = refused("router=oracle", ONE_TASK, "router.rank=4", "seed=1")
    assert (error.key, error.found) == ("router.rank", 4)


def test_a_value_is_checked_in_every_job_of_a_sweep():
    error = refused(ONE_TASK, "router.holdout=0.2,0.9", multirun=True)
    assert (error.key, error.found) == ("router.holdout", 0.9)


@pytest.mark.parametrize(
    ("overrides", "multirun"),
    [(["router=null"], False), (["router=3"], False), (["router=mlp,null"], True), (["~router"], False)],
)
def test_a_group_needs_an_option(overrides, multirun):
    error = refused(ONE_TASK, *overrides, multirun=multirun)
    assert (error.message, error.key) == ("a group needs an option", "router")


@pytest.mark.parametrize("text", ["foo", "a=[1", "experts.source=x/{task}"])
def test_what_is_no_override_is_quoted_back(text):
    error = refused(text)
    assert error.key == text
    assert "key=value" in error.expected


def test_the_cache_folder_needs_no_experiment():
    assert cache_folder([]) == Path("outputs/cache")
    assert cache_folder(["paths.cache=/somewhere/else"]) == Path("/somewhere/else")


def test_a_value_without_key_is_quoted_back():
    error = refused("=3")
    assert (error.key, error.found) == ("=3", 3)


def test_a_key_of_a_mapping_that_there_is_not_is_named_with_those_that_there_are():
    with pytest.raises(UserError) as caught:
        plan(["+exp=glue_roberta", "experts.reference={colla: 30}"], multirun=False)
    error = caught.value
    assert (error.message, error.key, error.nearest) == ("unknown key", "experts.reference.colla", "cola")
    assert "sst2" in error.expected
