"""Weights that stay for a whole sequence: what is found once for them is right for every further token, and is found once."""

from __future__ import annotations

import pytest
import torch
from test_plans import SPEEDS, B, T, m, n, slow
from torch import nn

from twin_merging.dynamic.layers import RoutedConv1D, RoutedLinear, RoutedScale
from twin_merging.dynamic.matrix import RoutedMatrix
from twin_merging.dynamic.mixture import Mixture
from twin_merging.dynamic.plan import Planner
from twin_merging.sparsifiers.svd import decompose

PLANS = ("factored", "gathered", "grouped", "dense")


def weights_of(kind: str) -> torch.Tensor:
    soft = torch.randn(B, T, dtype=torch.float64).softmax(-1)
    if kind == "alike":
        return soft[:1].repeat(B, 1)
    return soft * (soft >= soft.amax(1, keepdim=True)) if kind == "one hot" else soft


def layer(mixture: Mixture, plan: str, bias: bool, memory: int = 10**6) -> tuple[RoutedLinear, tuple]:
    shared = nn.Linear(n, m, bias=bias, dtype=torch.float64)
    delta, biases = decompose(torch.randn(T, m, n, dtype=torch.float64), 2), torch.randn(T, m, dtype=torch.float64)
    deltas = {"weight": delta, **({"bias": biases} if bias else {})}
    given = shared.weight.detach(), shared.bias.detach() if bias else None, delta, biases if bias else None
    return RoutedLinear(shared, mixture, Planner(plan, memory, SPEEDS), deltas, "layer"), given


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["soft", "one hot", "alike"])
@pytest.mark.parametrize("memory", [0, 10**6])
@torch.no_grad()
def test_every_token_is_answered_by_its_own_matrix(plan, bias, kind, memory):
    torch.manual_seed(0)
    mixture = Mixture()
    routed, given = layer(mixture, plan, bias, memory)
    for _ in range(2):  # a second sequence, of other weights
        weights = weights_of(kind)
        with mixture.of(weights, lasting=True):
            for tokens in (4, 4, 1, 1, 1, 2, 2, 1):
                x = torch.randn(B, tokens, n, dtype=torch.float64)
                torch.testing.assert_close(routed(x), slow(x, *given, weights), rtol=0, atol=1e-10)
            apart = torch.randn(n, 1, B, dtype=torch.float64).permute(2, 1, 0)  # not contiguous
            torch.testing.assert_close(routed(apart), slow(apart, *given, weights), rtol=0, atol=1e-10)
            flat = torch.randn(B, n, dtype=torch.float64)
            torch.testing.assert_close(routed(flat), slow(flat, *given, weights), rtol=0, atol=1e-10)
    torch.testing.assert_close(routed(x), routed.shared(x), rtol=0, atol=0)


@pytest.mark.parametrize("plan", PLANS)
@torch.no_grad()
def test_one_sequence_with_axes_of_its_own(plan):
    """Its rows lie as they like: turned axes have no flat view."""
    torch.manual_seed(0)
    mixture = Mixture()
    routed, given = layer(mixture, plan, True)
    weights = weights_of("soft")[:1]
    with mixture.of(weights, lasting=True):
        for x in (
            torch.randn(1, 3, 2, n, dtype=torch.float64),
            torch.randn(1, 2, 3, n, dtype=torch.float64).transpose(1, 2),
        ):
            expected = slow(x.reshape(1, 6, n), *given, weights).view(1, 3, 2, m)
            torch.testing.assert_close(routed(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["soft", "one hot", "alike"])
@torch.no_grad()
def test_a_convolution_of_one_token_too(kind):
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    mixture, shared = Mixture(), Conv1D(m, n).double()
    delta, biases = decompose(torch.randn(T, n, m, dtype=torch.float64), 2), torch.randn(T, m, dtype=torch.float64)
    routed = RoutedConv1D(shared, mixture, Planner("factored", 0, SPEEDS), {"weight": delta, "bias": biases}, "layer")
    turned = type(delta)(delta.V, delta.S, delta.U)
    weights = weights_of(kind)
    with mixture.of(weights, lasting=True):
        for _ in range(3):
            x = torch.randn(B, 1, n, dtype=torch.float64)
            expected = slow(x, shared.weight.mT, shared.bias, turned, biases, weights)
            torch.testing.assert_close(routed(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("first", [False, True])
@torch.no_grad()
def test_autocast_that_begins_or_ends_meanwhile_has_its_own_dtype(first):
    mixture = Mixture()
    routed, given = layer(mixture, "factored", True)
    routed, weights = routed.float(), weights_of("soft").float()
    given = tuple(part if not isinstance(part, torch.Tensor) else part.float() for part in given)
    x = torch.randn(B, 1, n)
    with mixture.of(weights, lasting=True):
        for autocast in (first, first, not first, not first, first):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                found = routed(x)
            assert found.dtype == (torch.bfloat16 if autocast else torch.float32)
            tolerance = 0.1 if autocast else 1e-5
            torch.testing.assert_close(found.double(), slow(x, *given, weights), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("plan", PLANS)
@torch.no_grad()
def test_what_stays_is_found_once(plan, monkeypatch):
    """Also that there is nothing to be found is found once: of one token, asking again would take as long as the product."""
    mixture, asked, planned = Mixture(), [], []
    routed, _ = layer(mixture, plan, False)
    ready, product = RoutedMatrix.ready, RoutedMatrix._product
    monkeypatch.setattr(RoutedMatrix, "ready", lambda self, *given: asked.append(1) or ready(self, *given))
    monkeypatch.setattr(RoutedMatrix, "_product", lambda self, *given: planned.append(1) or product(self, *given))
    with mixture.of(weights_of("one hot" if plan == "gathered" else "soft"), lasting=True):
        for _ in range(4):
            routed(torch.randn(B, 1, n, dtype=torch.float64))
    assert len(asked) == 1
    assert len(planned) == (1 if plan == "factored" else 4)
    asked.clear()
    with mixture.of(weights_of("soft")):  # of one pass, nothing is kept for others
        routed(torch.randn(B, 1, n, dtype=torch.float64))
        assert not asked
        assert not [key for key in mixture.batch.known if isinstance(key, tuple) and key[0] is routed]


@torch.no_grad()
def test_a_sequences_matrices_go_with_it():
    import gc
    import weakref

    mixture = Mixture()
    routed, _ = layer(mixture, "grouped", False)
    with mixture.of(weights_of("alike"), lasting=True):
        routed(torch.randn(B, 1, n, dtype=torch.float64))
        kept = [weakref.ref(each) for each in mixture.batch.known.values() if isinstance(each, torch.Tensor)]
        assert kept
    gc.collect()
    assert [each() for each in kept] == [None] * len(kept)


@torch.no_grad()
def test_a_norms_own_parameters_are_put_back_after_an_error():
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(n))

        def forward(self, x):
            if x.isnan().any():
                raise ValueError("no number")
            return x * self.weight

    mixture, norm = Mixture(), Norm()
    own, deltas, x = norm.weight, torch.randn(T, n), torch.randn(B, 2, n)
    routed = RoutedScale(norm, mixture, Planner("auto", 0, SPEEDS), {"weight": deltas}, "norm")
    weights = weights_of("soft").float()
    with mixture.of(weights, lasting=True):
        for _ in range(2):
            torch.testing.assert_close(routed(x), x * (1 + weights @ deltas).unsqueeze(1))
            assert norm.weight is own
        with pytest.raises(ValueError, match="no number"):
            routed(x * float("nan"))
        assert norm.weight is own
