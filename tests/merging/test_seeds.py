"""Whether a seed changes what a method or sparsifier computes is as it says, since seeds share the results of those that say no."""

from __future__ import annotations

import pytest
import torch

from twin_merging.config import merge_methods, sparsifiers
from twin_merging.merging.apply import merge, modularize
from twin_merging.merging.method import At, can_draw, kind_of, static
from twin_merging.merging.stack import Stack

SHAPES = {"matrix": (12, 9), "bias": (12,)}
STATIC = [name for name in merge_methods if hasattr(merge_methods[name].load(), "kind")]
WITHOUT_DATA = [name for name in STATIC if kind_of(merge_methods[name].load()).needs is None]
SPARSIFIERS = [
    ("svd", {"rank": 2}), ("svd", {"rank": 2, "solver": "randomized"}), ("magnitude", {"fraction": 0.5}), ("bernoulli", {}),
    ("none", {}),
]  # fmt: skip


def models() -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    torch.manual_seed(0)
    base = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    return base, [{name: x + torch.randn_like(x) / 10 for name, x in base.items()} for _ in range(3)]


@pytest.mark.parametrize("name", WITHOUT_DATA)
def test_a_seed_changes_a_merge_only_where_it_may(name: str):
    method, (base, experts) = merge_methods[name].load(), models()
    options = merge_methods[name].options()
    first, second = (merge(method, options, base, experts, list(base), seed=seed) for seed in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in base) == (not can_draw(method))


@pytest.mark.parametrize(("name", "options"), SPARSIFIERS)
def test_a_seed_changes_what_is_kept_only_where_it_may(name: str, options: dict):
    component, (base, experts) = sparsifiers[name], models()

    def kept(seed: int) -> dict[str, tuple]:
        found = {}

        def keep(key: str, value) -> None:
            found[key] = tuple(value) if isinstance(value, tuple) else (value,)

        stack = Stack(base, experts, list(base))
        modularize(keep, component.load(), component.options(**options), stack, seed=seed)
        return found

    first, second = kept(0), kept(1)
    same = all(torch.equal(x, y) for key in base for x, y in zip(first[key], second[key], strict=True))
    assert same == (not can_draw(component.load()))


def test_methods_that_do_not_say_may_draw_if_they_see_a_seed():
    def silent(base, deltas, options):
        return base

    def sees(base, deltas, options, at: At):
        return base

    known = static(statistic=lambda *_: {})(lambda base, deltas, options: base)
    says = static(random=False)(sees)
    assert [can_draw(each) for each in (silent, says, known)] == [False, False, True]
    assert can_draw(lambda base, deltas, options, at: base)


def test_every_sparsifier_is_looked_at():
    assert {name for name, _ in SPARSIFIERS} == set(sparsifiers)


def test_what_data_methods_need_is_seeded_where_it_is_found():
    assert not any(can_draw(merge_methods[name].load()) for name in ("fisher", "regmean", "adamerging"))
