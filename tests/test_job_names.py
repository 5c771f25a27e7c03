"""Folders of jobs: unique, and readable by what differs."""

from __future__ import annotations

import pytest

from twin_merging.compose import plan
from twin_merging.errors import UserError
from twin_merging.job_names import LONGEST, job_names


def test_only_what_differs_is_named_and_a_groups_option_stands_for_itself():
    jobs = [["+exp=quickstart", f"merge_method={m}", f"sparsifier.rank={r}"] for m in ("ties", "twin") for r in (1, 16)]
    assert job_names(jobs) == ["0-ties-rank=1", "1-ties-rank=16", "2-twin-rank=1", "3-twin-rank=16"]


def test_numbers_are_as_long_as_the_last_so_that_folders_sort():
    names = job_names([[f"seed={seed}"] for seed in range(11)])
    assert names[0] == "00-seed=0"
    assert names == sorted(names)
    assert job_names([[f"seed={seed}"] for seed in range(10)])[0] == "0-seed=0"


def test_keys_that_end_alike_are_told_apart():
    jobs = [[f"finetune.epochs={e}", f"router.epochs={e}", f"seed={e}"] for e in (1, 2)]
    assert job_names(jobs)[0] == "0-finetune.epochs=1-router.epochs=1-seed=1"


def test_how_a_key_is_added_is_no_part_of_its_name():
    assert job_names([["+exp=a", "++seed=1"], ["+exp=b", "seed=2"]]) == ["0-exp=a-seed=1", "1-exp=b-seed=2"]


def test_values_become_file_names():
    jobs = [[f"tasks.names={names}"] for names in ("[a,b]", "'x/y z'")]
    assert job_names(jobs) == ["0-names=a_b", "1-names=x_y_z"]
    (long, _) = job_names([[f"experts.source={'e' * 300}"], ["experts.source=f"]])
    assert len(long) == LONGEST


def test_the_same_job_again_and_one_alone():
    assert job_names([["merge_method=ties", "seed=1"]] * 2) == ["0-ties", "1-ties"]
    assert job_names([["seed=1"]]) == ["0"]


def test_a_sweep_names_its_jobs():
    launch = plan(["tasks.names=[cola]", "merge_method=ties,twin", "seed=0,1"], multirun=True)
    assert launch.names == ["0-ties-seed=0", "1-ties-seed=1", "2-twin-seed=0", "3-twin-seed=1"]
    assert not plan(["tasks.names=[cola]"], multirun=False).names


def test_a_pattern_of_ones_own_has_to_tell_jobs_apart():
    overrides = ["tasks.names=[cola]", "seed=0,1"]
    pattern = "hydra.sweep.subdir='by_seed/${seed}-${hydra.job.num}'"
    assert plan([*overrides, pattern], multirun=True).names == ["by_seed/0-0", "by_seed/1-1"]
    with pytest.raises(UserError) as error:
        plan([*overrides, "hydra.sweep.subdir='${merge_method.name}'"], multirun=True)
    assert (error.value.key, error.value.found) == ("hydra.sweep.subdir", "twin")
