"""Each routed layer against a loop that gives every example weights of its own."""

from __future__ import annotations

import pytest
import torch
from oracles import dynamic as oracle
from torch import nn

from twin_merging.dynamic.layers import Mixture, route
from twin_merging.errors import UserError
from twin_merging.sparsifiers.svd import decompose

B, T, S = 5, 3, 4
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


class One(nn.Module):
    """A module that holds one layer, since routing replaces a layer in its parent."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def exclusive_of(module: nn.Module, factored: bool, seed: int, skip: tuple[str, ...] = ()) -> dict:
    """Random v_t of every parameter, matrices as factors of rank 2 if ``factored``."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for name, parameter in module.named_parameters():
        if name in skip:
            continue
        delta = torch.randn(T, *parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        deltas[name] = decompose(delta, 2) if factored and parameter.dim() == 2 else delta
    return deltas


def random_weights(seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(B, T, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1).to(dtype)


def assert_equals_the_loop(module: One, deltas: dict, x: torch.Tensor, weights: torch.Tensor) -> None:
    slow = torch.cat(oracle.outputs(module, deltas, weights, x))
    mixture = Mixture()
    route(module, deltas, mixture)
    mixture.weights = weights
    with torch.no_grad():
        fast = module(x)
    assert fast.shape == slow.shape
    assert fast.dtype == weights.dtype
    torch.testing.assert_close(fast.double(), slow, rtol=0, atol=TOLERANCE[weights.dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("skip", [(), ("layer.bias",), ("layer.weight",)])
@pytest.mark.parametrize("shape", [(6,), (S, 6), (2, S, 6)])
def test_linear(shape, skip, factored, dtype):
    torch.manual_seed(0)
    module = One(nn.Linear(6, 5)).to(dtype)
    x = torch.randn(B, *shape, dtype=dtype)
    assert_equals_the_loop(module, exclusive_of(module, factored, 1, skip), x, random_weights(2, dtype))


@pytest.mark.parametrize("factored", [True, False])
def test_linear_without_bias(factored):
    module = One(nn.Linear(6, 5, bias=False)).double()
    x = torch.randn(B, S, 6, dtype=torch.float64)
    assert_equals_the_loop(module, exclusive_of(module, factored, 1), x, random_weights(2, torch.float64))


@pytest.mark.parametrize("factored", [True, False])
def test_linear_of_a_transposed_input(factored):
    module = One(nn.Linear(6, 5)).double()
    x = torch.randn(B, 2, 6, S, dtype=torch.float64).transpose(2, 3)
    assert not x.is_contiguous()
    assert_equals_the_loop(module, exclusive_of(module, factored, 1), x, random_weights(2, torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("factored", [True, False])
def test_embedding(factored, dtype):
    torch.manual_seed(0)
    module = One(nn.Embedding(9, 6, padding_idx=1)).to(dtype)
    assert_equals_the_loop(
        module, exclusive_of(module, factored, 3), torch.randint(9, (B, S)), random_weights(4, dtype)
    )


@pytest.mark.parametrize("factored", [True, False])
def test_embedding_of_ids_that_all_examples_share(factored):
    module = One(nn.Embedding(9, 6)).double()
    deltas, weights, ids = (
        exclusive_of(module, factored, 3),
        random_weights(4, torch.float64),
        torch.arange(S).unsqueeze(0),
    )
    slow = torch.cat(oracle.outputs(module, deltas, weights, ids.expand(B, -1)))
    mixture = Mixture()
    route(module, deltas, mixture)
    mixture.weights = weights
    with torch.no_grad():
        torch.testing.assert_close(module(ids), slow, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("skip", [(), ("layer.bias",), ("layer.weight",)])
def test_layer_norm(skip, dtype):
    torch.manual_seed(0)
    module = One(nn.LayerNorm(6, eps=1e-3)).to(dtype)
    x = 0.1 * torch.randn(B, S, 6, dtype=dtype)
    assert_equals_the_loop(module, exclusive_of(module, False, 5, skip), x, random_weights(6, dtype))


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.LayerNorm(6)])
def test_no_weights_evaluate_the_shared_layer(layer):
    module, x = One(layer), torch.randn(B, S, 6)
    expected = module(x)
    route(module, exclusive_of(module, False, 7), Mixture())
    assert torch.equal(module(x), expected)


def test_a_module_without_a_routed_form_is_named():
    module = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Conv1d(6, 6, 1)))
    with pytest.raises(UserError, match="no routed form") as caught:
        route(module, {"1.0.weight": torch.zeros(T, 6, 6, 1)}, Mixture())
    assert caught.value.key == "Sequential.1.0"
    assert caught.value.found == "Conv1d"
    assert "Linear" in caught.value.expected
    assert "parameters.exclude=['1.0.*']" in caught.value.hint


def test_a_subclass_that_may_compute_something_else_is_refused():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(UserError, match="no routed form"):
        route(One(Doubled(2, 2)), {"layer.weight": torch.zeros(T, 2, 2)}, Mixture())
