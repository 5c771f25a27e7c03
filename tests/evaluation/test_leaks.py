from __future__ import annotations

import pytest

from twin_merging.compose import plan
from twin_merging.evaluation.leaks import TASK_VALUES, TEST_INPUTS, leaks

OWN = "evaluation.excluded=task"
EXCLUDE = "parameters.exclude=[.*bias.*]"
HELD_OUT = "merge_method.inputs=validation"
TWIN = ["merge_method=twin", "merge_method@merge_method.shared=adamerging"]


@pytest.mark.parametrize(
    ("overrides", "leaky"),
    [
        ([], False),
        ([EXCLUDE], False),
        ([OWN], False),  # everything merges, and so nothing has the expert's values
        ([OWN, EXCLUDE], True),
        ([OWN, "parameters.include=[.*weight]"], True),
        ([OWN, EXCLUDE, "merge_method=ties"], True),
        ([OWN, EXCLUDE, "merge_method=finetuned"], False),
    ],
)
def test_a_leak_is_named_where_a_setting_makes_one(overrides: list[str], leaky: bool):
    (run,) = plan(["merge_method=twin", *overrides], multirun=False).jobs
    assert leaks(run) == ([TASK_VALUES] if leaky else [])


def test_the_authors_suite_leaks_and_the_papers_does_not():
    found = {name: leaks(plan([f"+exp={name}"], False).jobs[0]) for name in ("glue_roberta", "glue_roberta_authors")}
    assert found == {"glue_roberta": [], "glue_roberta_authors": [TASK_VALUES]}


@pytest.mark.parametrize(
    ("overrides", "leaky"),
    [
        (["merge_method=adamerging"], True),
        (["merge_method=adamerging", HELD_OUT], False),
        (["merge_method=surgery"], True),
        (["merge_method=surgery", HELD_OUT], True),  # its encoder is AdaMerging's of test inputs
        (["merge_method=surgery", HELD_OUT, "merge_method.merge.inputs=validation"], False),
        (["merge_method=surgery", "merge_method@merge_method.merge=task_arithmetic"], True),
        (["merge_method=surgery", "merge_method@merge_method.merge=task_arithmetic", HELD_OUT], False),
        (TWIN, True),
        ([*TWIN, "merge_method.shared.inputs=validation"], False),
        (["merge_method=regmean"], False),
    ],
)
def test_who_learns_from_test_inputs_is_named(overrides: list[str], leaky: bool):
    (run,) = plan(overrides, multirun=False).jobs
    assert leaks(run) == ([TEST_INPUTS] if leaky else [])
