from __future__ import annotations

import pytest
import torch

from twin_merging.errors import UserError
from twin_merging.parameters import select, task_vectors

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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_task_vectors_are_differences_in_float32_or_wider(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    base, *experts = (torch.randn(shape, generator=generator).to(dtype) for _ in range(4))
    found = task_vectors(base, [{"w": expert} for expert in experts], "w")
    assert found.shape == (3, *shape)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for t, expert in enumerate(experts):
        torch.testing.assert_close(found[t].double(), expert.double() - base.double(), rtol=1e-6, atol=1e-7)


def test_an_expert_may_be_wider_than_the_base():
    base, expert = torch.ones(2, dtype=torch.bfloat16), {"w": torch.full((2,), 1.0001)}
    torch.testing.assert_close(task_vectors(base, [expert], "w")[0], torch.full((2,), 1e-4), rtol=1e-2, atol=0)
