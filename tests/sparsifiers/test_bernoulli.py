from __future__ import annotations

import pytest
import torch

from twin_merging.config import Bernoulli
from twin_merging.merging.method import At
from twin_merging.sparsifiers.bernoulli import drop_at_random
from twin_merging.sparsifiers.sparse import dense


def test_what_is_kept_is_divided_by_the_chance_of_being_kept():
    deltas = torch.randn(3, 40, 50)
    for rescale in (True, False):
        kept = dense(drop_at_random(deltas, Bernoulli(drop_rate=0.75, rescale=rescale), At("w", seed=1)))
        mask = kept != 0
        assert 0.2 < mask.double().mean() < 0.3
        torch.testing.assert_close(kept[mask], deltas[mask] * (4 if rescale else 1))


def test_the_mean_over_many_draws_is_the_whole():
    deltas = torch.linspace(-1, 1, 24, dtype=torch.float64).view(2, 3, 4)
    options = Bernoulli(drop_rate=0.5)
    total = sum(dense(drop_at_random(deltas, options, At("w", seed=seed))) for seed in range(3000))
    # the deviation of the mean of 3000 draws is |δ| / √3000 = 0.018·|δ|
    torch.testing.assert_close(total / 3000, deltas, rtol=0, atol=0.09)


def test_nothing_and_almost_everything_dropped():
    deltas = torch.randn(2, 5, 5)
    assert torch.equal(dense(drop_at_random(deltas, Bernoulli(drop_rate=0), At("w"))), deltas)
    assert drop_at_random(deltas, Bernoulli(drop_rate=1 - 1e-12), At("w")).counts.tolist() == [0, 0]


def test_the_draw_depends_on_seed_and_name_alone():
    deltas, options = torch.randn(2, 30, 30), Bernoulli(drop_rate=0.5)
    first, again, other_name, other_seed = (
        drop_at_random(deltas, options, at)
        for at in (At("w", seed=1), At("w", seed=1), At("v", seed=1), At("w", seed=2))
    )
    torch.rand(7)
    assert torch.equal(first.positions, again.positions)
    assert not torch.equal(first.positions, other_name.positions)
    assert not torch.equal(first.positions, other_seed.positions)
    assert not torch.equal(dense(first)[0] != 0, dense(first)[1] != 0)  # each expert draws its own


@pytest.mark.parametrize("shape", [(), (4,)])
def test_vectors_are_kept_whole(shape):
    deltas = torch.randn(2, *shape)
    assert drop_at_random(deltas, Bernoulli(), At("w")) is deltas
