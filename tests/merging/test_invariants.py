"""What holds of every elementwise method, whatever the numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twin_merging.config import (
    Breadcrumbs,
    DareTaskArithmetic,
    DareTies,
    Pretrained,
    TaskArithmetic,
    Ties,
    WeightAveraging,
    merge_methods,
)
from twin_merging.merging.apply import merge
from twin_merging.merging.averaging import pretrained, weight_averaging
from twin_merging.merging.breadcrumbs import breadcrumbs
from twin_merging.merging.dare import dare_task_arithmetic, dare_ties
from twin_merging.merging.method import kind_of
from twin_merging.merging.task_arithmetic import task_arithmetic
from twin_merging.merging.ties import ties

METHODS = {
    "pretrained": (pretrained, Pretrained()),
    "weight_averaging": (weight_averaging, WeightAveraging()),
    "task_arithmetic": (task_arithmetic, TaskArithmetic(scaling=0.3)),
    "ties": (ties, Ties(density=0.3)),
    "ties by tensor, sum": (ties, Ties(density=0.6, threshold="per_tensor", zero_sign="drop", reduction="sum")),
    "dare_task_arithmetic": (dare_task_arithmetic, DareTaskArithmetic(scaling=0.3)),
    "dare_ties": (dare_ties, DareTies(density=0.3, zero_sign="positive", drop_rate=0.5)),
    "breadcrumbs": (breadcrumbs, Breadcrumbs(bottom=0.3, top=0.1)),
}
SCALED = [name for name, (_, options) in METHODS.items() if hasattr(options, "scaling")]
DETERMINISTIC = [name for name in METHODS if "dare" not in name]

shapes = st.lists(st.sampled_from([(), (1,), (5,), (2, 3), (0,), (3, 1, 2)]), min_size=1, max_size=4)


@st.composite
def models(draw, dtype: torch.dtype = torch.float64):
    """A base and one to four experts of small multiples of 1/8, so that every sum is exact and many magnitudes tie."""
    layout = draw(shapes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    width = draw(st.sampled_from([1, 2, 40]))

    def state(size: int) -> dict[str, torch.Tensor]:
        return {
            f"p{i}": (torch.randint(-size, size + 1, shape, generator=generator) / 8).to(dtype)
            for i, shape in enumerate(layout)
        }

    base = state(16)
    experts = [
        {name: base[name] + delta for name, delta in state(width).items()} for _ in range(draw(st.integers(1, 4)))
    ]
    return base, experts


def merged(name: str, base, experts, **changed):
    method, options = METHODS[name]
    given_options = type(options)(**{**vars(options), **changed})
    return merge(method, given_options, base, experts, list(base), seed=3)


def assert_close(left, right, tolerance: float = 1e-12):
    for name, x in left.items():
        assert x.shape == right[name].shape
        torch.testing.assert_close(x, right[name].to(x.dtype), rtol=tolerance, atol=tolerance)


for_every = pytest.mark.parametrize("name", METHODS)
few = settings(max_examples=25, deadline=None)


@for_every
@few
@given(model=models())
def test_shapes_and_inputs_stay(name, model):
    base, experts = model
    before = [{key: x.clone() for key, x in state.items()} for state in (base, *experts)]
    result = merged(name, base, experts)
    assert {key: x.shape for key, x in result.items()} == {key: x.shape for key, x in base.items()}
    for state, copy in zip((base, *experts), before, strict=True):
        assert all(torch.equal(state[key], x) for key, x in copy.items())


@pytest.mark.parametrize("name", DETERMINISTIC)
@few
@given(model=models(), data=st.data())
def test_the_order_of_experts_does_not_matter(name, model, data):
    base, experts = model
    assert_close(merged(name, base, experts), merged(name, base, data.draw(st.permutations(experts))))


@for_every
@few
@given(model=models(), exponent=st.integers(-6, 6))
def test_the_change_scales_with_the_task_vectors(name, model, exponent):
    base, experts = model
    factor = 2.0**exponent
    grown = [{key: base[key] + factor * (x - base[key]) for key, x in expert.items()} for expert in experts]
    once, scaled = merged(name, base, experts), merged(name, base, grown)
    assert_close({key: base[key] + factor * (once[key] - base[key]) for key in base}, scaled, 1e-10)


@for_every
@few
@given(model=models(), shift=st.integers(-8, 8))
def test_the_change_does_not_depend_on_where_the_base_is(name, model, shift):
    base, experts = model
    moved = [{key: x + shift for key, x in state.items()} for state in (base, *experts)]
    assert_close(
        {key: x + shift for key, x in merged(name, base, experts).items()}, merged(name, *(moved[0], moved[1:]))
    )


@for_every
@few
@given(model=models())
def test_experts_that_learned_nothing_give_the_base(name, model):
    base, experts = model
    assert_close(merged(name, base, [base] * len(experts)), base)


@pytest.mark.parametrize("name", SCALED)
@few
@given(model=models())
def test_scaling_is_linear_and_0_gives_the_base(name, model):
    base, experts = model
    none, one, two = (merged(name, base, experts, scaling=scaling) for scaling in (0.0, 0.5, 1.0))
    assert_close(none, base)
    assert_close({key: 2 * one[key] - base[key] for key in base}, two)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("weight_averaging", {}),
        ("task_arithmetic", {}),
        ("ties", {"density": 1.0}),
        ("ties by tensor, sum", {"density": 1.0}),
        ("dare_task_arithmetic", {"drop_rate": 0.0}),
        ("dare_ties", {"drop_rate": 0.0, "density": 1.0}),
        ("breadcrumbs", {"bottom": 0.0, "top": 0.0}),
    ],
)
@few
@given(model=models())
def test_one_expert_whole_is_itself(name, changed, model):
    base, (expert, *_) = model
    if name in SCALED:
        changed = {**changed, "scaling": 1.0}
    assert_close(merged(name, base, [expert], **changed), expert)


@pytest.mark.parametrize("name", [name for name in SCALED if "ties" in name])
@few
@given(model=models())
def test_opposite_experts_elect_opposite_signs(name, model):
    base, experts = model
    mirrored = [{key: 2 * base[key] - x for key, x in expert.items()} for expert in experts]
    changed = {"zero_sign": "drop"}
    there, back = merged(name, base, experts, **changed), merged(name, base, mirrored, **changed)
    assert_close({key: 2 * base[key] - x for key, x in there.items()}, back)


@pytest.mark.parametrize("name", [name for name in SCALED if "ties" in name])
@few
@given(model=models())
def test_a_mean_lies_within_the_experts(name, model):
    base, experts = model
    result = merged(
        name, base, experts, reduction="mean", scaling=1.0, **({"rescale": False} if "dare" in name else {})
    )
    for key, x in result.items():
        every = torch.stack([base[key], *(expert[key] for expert in experts)])
        assert (x >= every.amin(0) - 1e-12).all()
        assert (x <= every.amax(0) + 1e-12).all()


@for_every
@few
@given(model=models(torch.float32))
def test_bfloat16_gives_what_float32_gives_rounded_once(name, model):
    base, experts = model  # multiples of 1/8 below 8, which bfloat16 holds
    half = [{key: x.bfloat16() for key, x in state.items()} for state in (base, *experts)]
    exact = [{key: x.float() for key, x in state.items()} for state in half]
    result = merged(name, half[0], half[1:])
    assert all(x.dtype == torch.bfloat16 for x in result.values())
    wide = merged(name, exact[0], exact[1:])
    for key, x in wide.items():
        assert torch.equal(x.bfloat16(), result[key])


def test_a_method_that_says_it_is_linear_is_linear_in_scaling():
    generator = torch.Generator().manual_seed(0)
    states = [{"layer.weight": torch.randn(6, 5, generator=generator, dtype=torch.float64)} for _ in range(4)]
    found = set()
    for name, component in merge_methods.items():
        method = component.load()
        if not kind_of(method).linear:
            continue
        found.add(name)
        weak, whole = (
            merge(method, component.options(scaling=scaling), states[0], states[1:], ["layer.weight"])["layer.weight"]
            for scaling in (0.25, 1.0)
        )
        torch.testing.assert_close(weak, states[0]["layer.weight"].lerp(whole, 0.25), rtol=1e-9, atol=1e-9)
    scaled = {name for name, component in merge_methods.items() if hasattr(component.options(), "scaling")}
    assert found == scaled
