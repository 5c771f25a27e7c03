"""AdaMerging: λ learned without a graph through the merge equal those learned with one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import adamerging as oracle
from scipy import stats
from torch import Tensor, nn

from twin_merging.config import AdaMerging, Ties
from twin_merging.merging.adamerging import Learned, Mixture, adamerging, entropy, learn
from twin_merging.merging.apply import merge
from twin_merging.merging.method import kind_of
from twin_merging.merging.stack import Stack
from twin_merging.merging.ties import vote

SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4), (0,)]
EXPERTS, CLASSES, WIDTH = 3, 4, 5


class Answers(nn.Module):
    """A small model whose answers depend on λ in a way that is not linear; one of its parameters is never used."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, WIDTH)
        self.first, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.second, self.idle = nn.Linear(WIDTH, CLASSES), nn.Linear(2, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.second(torch.tanh(self.norm(self.first(self.embedding(ids)))))


def case(seed: int = 0) -> tuple[Answers, dict[str, Tensor], list[Tensor]]:
    """A model in float64, task vectors, and a batch for each task."""
    torch.manual_seed(seed)
    model = Answers().double()
    deltas = {name: torch.randn(EXPERTS, *p.shape, dtype=torch.float64) for name, p in model.named_parameters()}
    del deltas["norm.bias"]  # a parameter that does not merge
    return model, deltas, [torch.randint(6, (8,)) for _ in range(EXPERTS)]


def learned_by(model: Answers, deltas: dict[str, Tensor], inputs: list[Tensor], options: AdaMerging):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in deltas)

    def backward() -> float:
        losses = [entropy64(model(ids)).mean() for ids in inputs]
        for loss in losses:  # one after the other, as tasks' batches go
            loss.backward()
        return sum(loss.item() for loss in losses)

    return learn(Mixture(dict(model.named_parameters()), deltas), backward, options)


def entropy64(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("granularity", ["task_wise", "layer_wise"])
def test_it_learns_what_autograd_through_the_merge_learns(granularity, clamp, sparse):
    model, deltas, inputs = case()
    other = copy.deepcopy(model)
    model.embedding.sparse = sparse
    options = AdaMerging(granularity=granularity, clamp=clamp, steps=12, lr=0.2)  # λ leave 0 to 1 on the way
    found, history = learned_by(model, deltas, inputs, options)

    def objective(call) -> Tensor:
        return sum(entropy64(call(ids)).mean() for ids in inputs)

    expected, losses = oracle.learn(other, deltas, objective, 12, 0.2, 0.3, granularity == "task_wise", clamp)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(history, losses, rtol=1e-9)
    assert losses[-1] < losses[0]
    columns = len({tuple(column) for column in found.T.tolist()})
    assert (columns == 1) == (granularity == "task_wise")
    assert bool(((found >= 0) & (found <= 1)).all()) == clamp


def test_what_is_written_into_the_model_is_the_merge():
    model, deltas, _ = case(1)
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    experts = [{name: x + deltas[name][t] if name in deltas else x for name, x in base.items()} for t in range(EXPERTS)]
    found = torch.randn(EXPERTS, len(deltas), dtype=torch.float64)
    Mixture(dict(model.named_parameters()), deltas).write(found)
    statistics = {name: Learned(column) for name, column in zip(deltas, found.T, strict=True)}
    merged = merge(adamerging, AdaMerging(), base, experts, list(deltas), statistics=statistics)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), merged[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(6))
def test_it_equals_its_oracle(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    base = {f"p{i}": torch.randn(shape, generator=generator).to(dtype) for i, shape in enumerate(SHAPES)}
    experts = [
        {n: torch.randn(x.shape, generator=generator).to(dtype) for n, x in base.items()} for _ in range(1 + seed % 4)
    ]
    statistics = {name: Learned(torch.randn(len(experts), generator=generator)) for name in base}
    found = merge(adamerging, AdaMerging(), base, experts, list(base), statistics=statistics)
    digits = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 2**-7}[dtype]
    for name, tensor in base.items():
        mine = [expert[name].double().numpy() for expert in experts]
        expected = oracle.adamerging(tensor.double().numpy(), mine, statistics[name].coefficients.tolist())
        assert found[name].dtype == dtype
        np.testing.assert_allclose(found[name].double().numpy(), expected, rtol=digits, atol=4 * digits)


@pytest.mark.parametrize("density", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_plus_plus_merges_what_is_large_and_has_the_elected_sign(seed, density):
    generator = torch.Generator().manual_seed(seed)
    base = {f"p{i}": torch.randn(shape, generator=generator, dtype=torch.float64) for i, shape in enumerate(SHAPES)}
    moves = [{n: torch.randn(x.shape, generator=generator).double() for n, x in base.items()} for _ in range(1 + seed)]
    for move in moves[1:2]:
        move["p3"] = -moves[0]["p3"].clone()  # where two cancel out, and so do their signs
    experts = [{name: base[name] + move[name] for name in base} for move in moves]
    votes = vote(Stack(base, experts, list(base)), Ties(density=density), 0)
    coefficients = {name: torch.randn(len(experts), generator=generator).double() for name in base}
    found = merge(
        adamerging, AdaMerging(plus_plus=True), base, experts, list(base),
        statistics={name: Learned(coefficients[name], votes[name]) for name in base},
    )  # fmt: skip
    deltas = [{name: (expert[name] - base[name]).numpy() for name in base} for expert in experts]
    kept = oracle.elected(deltas, density)
    for name, start in base.items():
        tuned = [start.numpy() + vector[name] for vector in kept]
        expected = oracle.adamerging(start.numpy(), tuned, coefficients[name].tolist())
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([1.0, 30.0, 300.0]))
def test_entropy_is_that_of_the_softmax(seed, scale):
    logits = scale * torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = entropy(logits)
    for row, value in zip(logits, found, strict=True):
        assert value.item() == pytest.approx(oracle.entropy(row.tolist()), rel=1e-4, abs=1e-6)
        assert value.item() == pytest.approx(stats.entropy(row.softmax(-1).numpy()), rel=1e-4, abs=1e-6)


def test_entropy_of_equal_logits_is_that_of_a_fair_choice_and_of_a_certain_one_0():
    assert entropy(torch.zeros(1, 8)).item() == pytest.approx(np.log(8))
    certain = torch.tensor([[1e4, 0.0]], requires_grad=True)
    assert entropy(certain).item() == 0
    entropy(certain).sum().backward()
    assert torch.isfinite(certain.grad).all()


def test_it_says_what_it_needs():
    assert kind_of(adamerging).needs == AdaMerging.needs == "coefficients"
