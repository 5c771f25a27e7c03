"""Each routed layer against a loop that gives every example weights of its own."""

from __future__ import annotations

import copy

import pytest
import torch
from oracles import dynamic as oracle
from torch import nn
from transformers import Dinov2Config
from transformers.models.dinov2.modeling_dinov2 import Dinov2LayerScale
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from twin_merging.dynamic.mixture import Mixture
from twin_merging.dynamic.plan import Planner
from twin_merging.dynamic.route import route
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
    route(module, deltas, mixture, Planner())
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
    route(module, deltas, mixture, Planner())
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
    route(module, exclusive_of(module, False, 7), Mixture(), Planner())
    assert torch.equal(module(x), expected)


class Doubled(nn.Linear):
    """A subclass that computes something else than its class."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("layer", "shape"), [(Doubled(6, 5), (S, 6)), (nn.Conv1d(3, 5, 2), (3, 6)), (nn.PReLU(6), (6, S))]
)
@pytest.mark.parametrize("alike", [False, True])
def test_a_module_without_a_routed_form_runs_once_for_each_weights_and_is_named(layer, shape, alike, caplog):
    module = One(layer).double()
    deltas, weights = exclusive_of(module, False, 8), random_weights(9, torch.float64)
    if alike:
        weights[1:4] = weights[0]
    x = torch.randn(B, *shape, dtype=torch.float64)
    with caplog.at_level("WARNING", "twin_merging"):
        assert_equals_the_loop(module, deltas, x, weights)
    assert f"One.layer ({type(layer).__name__}) has no routed form" in caplog.text


def test_modules_inside_one_without_a_routed_form_take_the_same_examples():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.offset, self.inner = nn.Parameter(torch.randn(6)), nn.Linear(6, 6)

        def forward(self, x, *, scale):
            return {"y": self.inner(x + self.offset) * scale, "z": x.new_ones(())}

    module = One(Outer()).double()
    module.forward = lambda x: module.layer(x, scale=torch.arange(1.0, len(x) + 1).view(-1, 1, 1))["y"]
    deltas, weights = exclusive_of(module, True, 8), random_weights(9, torch.float64)
    weights[3] = weights[1]
    x = torch.randn(B, S, 6, dtype=torch.float64)
    slow = torch.cat(oracle.outputs(module.layer.inner, {n.removeprefix("layer.inner."): d for n, d in deltas.items() if "inner" in n},
        weights, x + module.layer.offset.detach() + torch.einsum("bt,tn->bn", weights, deltas["layer.offset"]).unsqueeze(1)))  # fmt: skip
    mixture = Mixture()
    route(module, deltas, mixture, Planner())
    with torch.no_grad(), mixture.of(weights):
        torch.testing.assert_close(module(x), slow * torch.arange(1.0, B + 1).view(-1, 1, 1), rtol=0, atol=1e-10)


def test_a_missing_parameter_is_an_error():
    with pytest.raises(AttributeError):
        route(One(nn.Linear(2, 2)), {"layer.gain": torch.zeros(T, 2)}, Mixture(), Planner())


@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("skip", [(), ("layer.bias",), ("layer.weight",)])
def test_conv1d_stores_its_weight_the_other_way_round(factored, skip):
    module = One(Conv1D(5, 6)).double()
    nn.init.normal_(module.layer.bias)
    x = torch.randn(B, S, 6, dtype=torch.float64)
    assert_equals_the_loop(module, exclusive_of(module, factored, 1, skip), x, random_weights(2, torch.float64))


@pytest.mark.parametrize("skip", [(), ("layer.bias",), ("layer.weight",)])
@pytest.mark.parametrize("settings", [
    {"kernel_size": 2, "stride": 2}, {"kernel_size": 3, "padding": 1}, {"kernel_size": 3, "dilation": 2, "stride": 2, "padding": (1, 2)},
    {"kernel_size": 2, "bias": False},
])  # fmt: skip
def test_convolutions_of_images(settings, skip):
    module = One(nn.Conv2d(3, 4, **settings)).double()
    x = torch.randn(B, 3, 8, 10, dtype=torch.float64)
    assert_equals_the_loop(module, exclusive_of(module, False, 1, skip), x, random_weights(2, torch.float64))


@pytest.mark.parametrize(
    "layer", [LlamaRMSNorm(6), GemmaRMSNorm(6), Dinov2LayerScale(Dinov2Config(hidden_size=6)), nn.RMSNorm(6)]
)
@pytest.mark.parametrize("shape", [(6,), (S, 6), (S, 2, 6)])
def test_vectors_that_scale(layer, shape):
    module = One(layer).float()  # these norms compute in float32 whatever their input
    x = torch.randn(B, *shape)
    assert_equals_the_loop(module, exclusive_of(module, False, 1), x, random_weights(2, torch.float32))


class Attention(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.layer = nn.MultiheadAttention(6, 2, **settings)

    def forward(self, x, other=None, **settings):
        other = x if other is None else other
        return self.layer(x, other, other, need_weights=False, **settings)[0]


def oracle_of(module: nn.Module, deltas: dict, weights: torch.Tensor) -> nn.Module:
    """The module of one example's weights, (T)."""
    own = copy.deepcopy(module)
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            parameter += torch.tensordot(weights, oracle.multiplied_out(deltas[name]), 1)
    return own


SKIPPED = [(), ("layer.in_proj_weight",), ("layer.out_proj.weight",), ("layer.in_proj_bias", "layer.out_proj.bias")]


@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("skip", SKIPPED)
@pytest.mark.parametrize("bias", [True, False])
def test_attention_with_packed_projections(bias, skip, factored):
    module = Attention(batch_first=True, bias=bias).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(B, S, 6, dtype=torch.float64)
    assert_equals_the_loop(module, exclusive_of(module, factored, 1, skip), x, random_weights(2, torch.float64))


@pytest.mark.parametrize("kind", ["causal", "float mask", "mask a head", "padding", "both", "cross", "sequence first"])
def test_attention_with_masks_other_keys_and_other_layouts(kind):
    module = Attention(batch_first=kind != "sequence first").double()
    x, other = (torch.randn(B, length, 6, dtype=torch.float64) for length in (S, S + 2))
    causal, padding = torch.ones(S, S).triu(1).bool(), torch.zeros(B, S).bool()
    padding[1, 2:] = padding[3, 3:] = True
    a_head = torch.randn(2 * B, S, S, dtype=torch.float64)
    settings = {
        "causal": {"attn_mask": causal, "is_causal": True}, "float mask": {"attn_mask": a_head[0]}, "mask a head": {"attn_mask": a_head},
        "padding": {"key_padding_mask": padding}, "both": {"attn_mask": causal, "key_padding_mask": padding},
        "cross": {"other": other}, "sequence first": {},
    }[kind]  # fmt: skip
    deltas, weights = exclusive_of(module, True, 3), random_weights(4, torch.float64)
    slow = []
    for row in range(B):
        own = copy.deepcopy(module)
        with torch.no_grad():
            for name, parameter in own.named_parameters():
                parameter += torch.tensordot(weights[row], oracle.multiplied_out(deltas[name]), 1)
            mine = {
                name: value[2 * row : 2 * row + 2] if kind == "mask a head" else value[row : row + 1] if len(value) == B else value
                for name, value in settings.items() if isinstance(value, torch.Tensor)
            }  # fmt: skip
            mine |= {name: value for name, value in settings.items() if not isinstance(value, torch.Tensor)}
            one = x[row : row + 1]
            slow.append(
                own(one.transpose(0, 1), **mine).transpose(0, 1) if kind == "sequence first" else own(one, **mine)
            )
    mixture = Mixture()
    route(module, deltas, mixture, Planner())
    with torch.no_grad(), mixture.of(weights):
        fast = module(x.transpose(0, 1)).transpose(0, 1) if kind == "sequence first" else module(x, **settings)
    torch.testing.assert_close(fast, torch.cat(slow), rtol=0, atol=1e-10)


@pytest.mark.parametrize("average", [True, False])
def test_attention_weights_are_given_back(average):
    module, mixture, weights = Attention(batch_first=True).double(), Mixture(), random_weights(1, torch.float64)
    deltas, x = exclusive_of(module, True, 1), torch.randn(B, S, 6, dtype=torch.float64)
    settings = {"attn_mask": torch.ones(S, S).triu(1).bool(), "average_attn_weights": average}
    slow = [oracle_of(module, deltas, w).layer(*[x[row : row + 1]] * 3, **settings)[1] for row, w in enumerate(weights)]
    route(module, deltas, mixture, Planner())
    with torch.no_grad(), mixture.of(weights):
        torch.testing.assert_close(module.layer(x, x, x, **settings)[1], torch.cat(slow), rtol=0, atol=1e-10)


@pytest.mark.parametrize("settings", [{"kdim": 4, "vdim": 5}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_attention_of_other_forms_runs_once_for_each_weights(settings):
    module = Attention(batch_first=True, **settings).double()
    x, key, value = (
        torch.randn(B, S, size, dtype=torch.float64) for size in (6, settings.get("kdim", 6), settings.get("vdim", 6))
    )
    deltas, weights, mixture = exclusive_of(module, True, 1), random_weights(2, torch.float64), Mixture()
    slow = [
        oracle_of(module, deltas, w).layer(x[row, None], key[row, None], value[row, None])[0]
        for row, w in enumerate(weights)
    ]
    route(module, deltas, mixture, Planner())
    with torch.no_grad(), mixture.of(weights):
        torch.testing.assert_close(module.layer(x, key, value)[0], torch.cat(slow), rtol=0, atol=1e-10)


@pytest.mark.parametrize("examples", [1, B])
@pytest.mark.parametrize("most", [1, 2])
def test_embeddings_of_the_experts_that_an_example_has(most, examples):
    """Also of ids that all examples look up, such as positions."""
    torch.manual_seed(0)
    module, ids = One(nn.Embedding(9, 6)).double(), torch.randint(9, (examples, S))
    weights = random_weights(3, torch.float64)
    weights = weights * (weights >= weights.topk(most, -1).values[:, -1:])
    delta = exclusive_of(module, True, 2)["layer.weight"]
    whole = module.layer.weight.detach() + torch.einsum("bt,tmn->bmn", weights, oracle.multiplied_out(delta))
    mixture = Mixture()
    route(module, {"layer.weight": delta}, mixture, Planner())
    with torch.no_grad(), mixture.of(weights):
        found = module(ids)
    torch.testing.assert_close(found, torch.stack([w[i] for w, i in zip(whole, ids.expand(B, -1), strict=True)]))


def test_a_parameter_of_two_layers_is_routed_in_both():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.out = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
            self.out.weight = self.tokens.weight

        def forward(self, ids):
            return self.out(self.tokens(ids))

    module, ids, weights = Tied().double(), torch.randint(9, (B, S)), random_weights(1, torch.float64)
    delta = exclusive_of(module, True, 2)["tokens.weight"]
    whole = module.tokens.weight.detach() + torch.einsum("bt,tmn->bmn", weights, oracle.multiplied_out(delta))
    slow = torch.einsum("bsn,bmn->bsm", torch.stack([w[i] for w, i in zip(whole, ids, strict=True)]), whole)
    mixture = Mixture()
    route(module, {"tokens.weight": delta}, mixture, Planner())
    with torch.no_grad(), mixture.of(weights):
        torch.testing.assert_close(module(ids), slow, rtol=0, atol=1e-10)
