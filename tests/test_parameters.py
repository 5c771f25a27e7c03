from __future__ import annotations

import pytest

from twin_merging.errors import UserError
from twin_merging.parameters import select

NAMES = ["layer.0.weight", "layer.0.bias", "layer.1.weight", "layer.1.bias", "norm.weight"]


@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        ([".*"], [], NAMES),
        ([".*"], [".*bias.*"], ["layer.0.weight", "layer.1.weight", "norm.weight"]),
        (["layer.0.*", "norm.*"], [], ["layer.0.weight", "layer.0.bias", "norm.weight"]),
        ([r"layer\.\d\.weight"], [r"layer\.1.*"], ["layer.0.weight"]),
        (["norm.weight"], [], ["norm.weight"]),
    ],
)
def test_included_and_not_excluded_in_the_models_order(include, exclude, chosen):
    assert select(NAMES, include, exclude) == chosen


def test_a_pattern_matches_the_whole_name():
    with pytest.raises(UserError, match="no parameter is left"):
        select(NAMES, ["weight"], [])


def test_names_are_read_once():
    assert select(iter(NAMES), [".*"], ["norm.*"]) == NAMES[:4]


@pytest.mark.parametrize(("include", "exclude"), [(["nothing"], []), ([], []), ([".*"], [".*"])])
def test_nothing_left_shows_patterns_and_a_name(include, exclude):
    with pytest.raises(UserError, match="no parameter is left") as caught:
        select(NAMES, include, exclude)
    assert caught.value.key == "parameters"
    assert str(include) in caught.value.found
    assert "layer.0.weight" in caught.value.expected


@pytest.mark.parametrize(
    ("include", "exclude", "key"), [(["(a"], [], "parameters.include"), ([".*"], ["*"], "parameters.exclude")]
)
def test_what_is_no_regular_expression_is_named(include, exclude, key):
    with pytest.raises(UserError, match="not a regular expression") as caught:
        select(NAMES, include, exclude)
    assert caught.value.key == key
    assert caught.value.found == (include + exclude)[-1]
