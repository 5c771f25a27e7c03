"""What is kept of w(x), and for how long what follows from it is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twin_merging.dynamic.mixture import Mixture, truncate

WEIGHTS = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])


def test_top_k_keeps_the_largest_as_they_are():
    torch.testing.assert_close(truncate(WEIGHTS, top_k=1), torch.tensor([[0, 0.6, 0], [0.5, 0, 0], [0, 0, 1.0]]))
    assert torch.equal(truncate(WEIGHTS, top_k=3), WEIGHTS)


def test_mass_keeps_as_few_as_reach_it():
    expected = [[0, 0.6, 0.3], [0.5, 0.5, 0], [0, 0, 1.0]]
    torch.testing.assert_close(truncate(WEIGHTS, mass=0.7), torch.tensor(expected))
    assert torch.equal(truncate(WEIGHTS, mass=1.0), WEIGHTS)


@given(
    st.lists(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=5),
    st.none() | st.integers(1, 5), st.none() | st.floats(0.01, 1),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_truncation_against_a_plain_loop(rows, top_k, mass):
    weights = torch.tensor(rows, dtype=torch.float64)
    found = truncate(weights, top_k, mass)
    for row, kept in zip(weights.tolist(), found.tolist(), strict=True):
        assert all(new in (0, old) for old, new in zip(row, kept, strict=True))
        positive = [new for new in kept if new > 0]
        assert len(positive) <= (top_k or 4)
        if top_k is None and mass is not None:
            assert sum(positive) >= mass * sum(row) - 1e-9
            assert (
                not positive or sum(positive) - min(positive) < mass * sum(row) + 1e-9
            )  # with one fewer it is not reached
        if top_k is None and mass is None:
            assert row == kept
        dropped = [old for old, new in zip(row, kept, strict=True) if old > 0 and new == 0]
        assert not dropped or not positive or max(dropped) <= min(positive)


def test_where_no_example_has_all_experts_those_that_they_have_are_found():
    mixture, few = Mixture(), WEIGHTS * (WEIGHTS > 0.2)
    mixture.weights = few
    assert mixture.kept is not None
    experts, weights = mixture.kept
    assert experts.shape == (3, 2)
    assert mixture.dropped == 0
    assert torch.equal(torch.zeros_like(few).scatter_add(1, experts, weights), few)


def test_an_example_with_all_experts_has_them_all_computed():
    mixture = Mixture()
    mixture.weights = torch.full((2, 3), 1 / 3)
    assert mixture.kept is None
    mixture = Mixture(top_k=2)
    mixture.weights = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.0, 0.9]])
    assert mixture.kept is not None
    assert mixture.kept[0].tolist() == [[1, 2], [2, 0]]
    assert mixture.dropped == pytest.approx(0.2)
    mixture.weights = torch.tensor([[1.0, 0.0, 0.0]])
    assert mixture.dropped == pytest.approx(0.2)  # the largest so far


def test_examples_that_all_have_the_same_weights_have_one_row_of_them():
    mixture = Mixture()
    with mixture.of(WEIGHTS[:1].expand(4, -1)):
        assert torch.equal(mixture.weights, WEIGHTS[:1])
        assert mixture.batch.pattern.distinct == 1
    with mixture.of(WEIGHTS[[0, 1, 0]]):
        assert mixture.batch.pattern.distinct == 2
        assert sorted(group.rows.tolist() for group in mixture.batch.groups) == [[0, 2], [1]]


def test_whether_weights_last_is_said_anew_for_each():
    mixture = Mixture()
    with mixture.of(WEIGHTS, lasting=True):
        mixture.weights = WEIGHTS[:2]  # such as those of a prompt's beams
        assert mixture.batch.pattern.lasting
        with mixture.of(WEIGHTS):
            assert not mixture.batch.pattern.lasting
        assert mixture.lasting
    assert not mixture.lasting


def test_what_follows_from_the_weights_is_found_once_until_they_change():
    mixture, calls = Mixture(), []

    def find(weights: torch.Tensor) -> torch.Tensor:
        calls.append(len(weights))
        return weights.sum(1)

    with mixture.of(WEIGHTS):
        mixture.once("sum", find)
        mixture.once("sum", find)
        with mixture.only(torch.tensor([2])):
            assert mixture.once("sum", find).tolist() == [1.0]
        assert len(mixture.once("sum", find)) == 3
    with mixture.of(WEIGHTS):
        mixture.once("sum", find)
    assert calls == [3, 1, 3]
    assert mixture.weights is None
