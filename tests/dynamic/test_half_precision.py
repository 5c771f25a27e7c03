"""Every routed layer in bfloat16, under weights in float32 and knowledge in either: no layer needs autocast to join them."""

from __future__ import annotations

import copy

import pytest
import torch
from oracles import dynamic as oracle
from test_layers import Attention, B, One, S, exclusive_of, random_weights
from torch import nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from twin_merging.config import Exact
from twin_merging.dynamic.model import TwinMergedModel


class Reads(nn.Module):
    """Reads its embedding's matrix by itself, as tied output layers do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Embedding(9, 6)

    def forward(self, ids):
        return F.linear(self.layer(ids), self.layer.weight)


BIAS_ALONE = ("layer.weight",)
CASES = {
    "linear": (lambda: One(nn.Linear(6, 5)), ()),
    "a linear layer's bias": (lambda: One(nn.Linear(6, 5)), BIAS_ALONE),
    "convolution": (lambda: One(nn.Conv2d(3, 4, 2)), ()),
    "a convolution's bias": (lambda: One(nn.Conv2d(3, 4, 2)), BIAS_ALONE),
    "embedding": (lambda: One(nn.Embedding(9, 6)), ()),
    "an embedding that is read": (Reads, ()),
    "layer norm": (lambda: One(nn.LayerNorm(6)), ()),
    "RMS norm": (lambda: One(nn.RMSNorm(6)), ()),
    "Llama's norm": (lambda: One(LlamaRMSNorm(6)), ()),
    "attention": (lambda: Attention(batch_first=True), ()),
    "attention's biases": (lambda: Attention(batch_first=True), ("layer.in_proj_weight", "layer.out_proj.weight")),
}


def an_input(name: str) -> torch.Tensor:
    if "embedding" in name:
        return torch.randint(0, 9, (B, S))
    return torch.randn(B, 3, 4, 4) if "convolution" in name else torch.randn(B, S, 6)


def stored_as(delta, dtype: torch.dtype):
    return type(delta)(*(part.to(dtype) for part in delta)) if isinstance(delta, tuple) else delta.to(dtype)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("kind", ["own", "alike", "one expert", "one expert, alike"])
@pytest.mark.parametrize("name", list(CASES))
@torch.no_grad()
def test_a_layer(name, kind, factored, stored):
    make, skip = CASES[name]
    torch.manual_seed(len(name))
    module = make()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    module, x = module.bfloat16(), an_input(name)
    x = x.bfloat16() if x.is_floating_point() else x
    deltas = {key: stored_as(delta, stored) for key, delta in exclusive_of(module.float(), factored, 1, skip).items()}
    module = module.bfloat16()
    weights = random_weights(2, torch.float32)
    if kind.startswith("one expert"):
        weights = torch.zeros_like(weights).scatter(1, weights.argmax(1, keepdim=True), 1.0)
    weights = weights[:1] if kind.endswith("alike") else weights
    wide = {key: stored_as(delta, torch.float64) for key, delta in deltas.items()}
    loop = oracle.outputs(
        copy.deepcopy(module).double(), wide, weights.double().expand(B, -1), x.double() if x.is_floating_point() else x
    )
    exact = torch.cat(loop)
    options = Exact(top_k=1) if kind.startswith("one expert") else Exact()
    found = TwinMergedModel(module, deltas, options)(x, weights=weights)
    assert found.dtype == torch.bfloat16
    assert float((found.double() - exact).norm() / exact.norm()) < 0.02
