"""Linear layers of a plain model by oneDNN: the same answers and gradients as by torch, and only where it is faster."""

from __future__ import annotations

import copy

import pytest
import torch
from backbones.tiny_language import backbone_of, save_language
from torch import nn

from twin_merging.backbones import products
from twin_merging.backbones.products import FasterAttention, FasterLinear, faster_products
from twin_merging.dynamic import kernels
from twin_merging.dynamic.speeds import Speeds
from twin_merging.tasks.generation import Request

pytestmark = pytest.mark.skipif(not kernels.can_try_onednn("cpu", torch.float32), reason="this torch has no oneDNN")
SPEEDS = Speeds(1e11, 1e11, 1e11, 1e11, 1e10)


@pytest.fixture
def onednn(monkeypatch) -> list[tuple[int, ...]]:
    """A machine on which oneDNN is faster, for products of any size; the shapes that it was given."""
    seen: list[tuple[int, ...]] = []
    own = kernels.onednn

    def noted(x, weight, bias=None):
        seen.append((x.numel() // x.shape[-1], *weight.shape))
        return own(x, weight, bias)

    monkeypatch.setattr(Speeds, "of", lambda *_, **__: Speeds(**{**vars(SPEEDS), "kernel": "onednn"}))
    monkeypatch.setattr(kernels, "SMALL", 0)
    monkeypatch.setattr(products, "SMALL", 0)
    monkeypatch.setattr(products, "onednn", noted)
    return seen


@pytest.mark.parametrize("rows", [(3, 5), (products.MANY,), (2, products.MANY)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("learns", ["all", "input", "weight"])
def test_answers_and_gradients_are_torchs_own(onednn, rows, bias, learns):
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 80, bias=bias), torch.randn(*rows, 48, requires_grad=learns != "weight")
    layer.requires_grad_(learns != "input")
    other = copy.deepcopy(layer).double()
    wanted = other(given := x.detach().double().requires_grad_(x.requires_grad))
    wanted.square().sum().backward()
    with faster_products(layer):
        found = layer(x)
        found.square().sum().backward()
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)
    for mine, own in zip([x, *layer.parameters()], [given, *other.parameters()], strict=True):
        assert (mine.grad is None) == (own.grad is None)
        if own.grad is not None:
            torch.testing.assert_close(mine.grad.double(), own.grad, rtol=1e-5, atol=1e-4)
    count = torch.Size(rows).numel()
    taken = {(count, 80, 48)}
    if count >= products.MANY:
        taken |= {(count, 48, 80)} if learns != "weight" else set()
    assert set(onednn) == taken


def test_layers_are_plain_before_and_after(onednn):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).double(), nn.ReLU(), nn.Bilinear(2, 2, 2))
    with faster_products(model):
        assert [type(layer) for layer in model] == [FasterLinear, nn.Linear, nn.ReLU, nn.Bilinear]
        with faster_products(model):  # an evaluation while it learns
            assert type(model[0]) is FasterLinear
        assert type(model[0]) is FasterLinear
    with pytest.raises(RuntimeError), faster_products(model):
        model(torch.randn(2, 3))
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear, nn.ReLU, nn.Bilinear]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("learns", ["all", "input", "nothing"])
def test_packed_attention_and_its_gradients_are_torchs_own(onednn, masked, learns):
    torch.manual_seed(0)
    attention, x = (
        nn.MultiheadAttention(48, 4, batch_first=True),
        torch.randn(3, 7, 48, requires_grad=learns != "nothing"),
    )
    nn.init.normal_(attention.in_proj_bias)
    attention.requires_grad_(learns == "all")
    mask = torch.full((7, 7), float("-inf")).triu(1) if masked else None
    other = copy.deepcopy(attention).double()
    given = x.detach().double().requires_grad_(x.requires_grad)
    wanted, _ = other(given, given, given, need_weights=False, attn_mask=None if mask is None else mask.double())
    with faster_products(attention):
        assert type(attention) is FasterAttention
        found, looks = attention(x, x, x, need_weights=False, attn_mask=mask)
    assert looks is None
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)
    assert {(21, 144, 48), (21, 48, 48)} <= set(onednn)
    if learns == "nothing":
        return
    wanted.square().sum().backward()
    found.square().sum().backward()
    for mine, own in zip([x, *attention.parameters()], [given, *other.parameters()], strict=True):
        assert (mine.grad is None) == (own.grad is None)
        if own.grad is not None:
            torch.testing.assert_close(mine.grad.double(), own.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_some_tokens_attend_to_all_by_some_rows_of_the_packed_matrix(onednn, bias):
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(48, 4, bias=bias, batch_first=True), torch.randn(3, 7, 48, requires_grad=True)
    if bias:
        nn.init.normal_(attention.in_proj_bias)
    other, given = copy.deepcopy(attention).double(), x.detach().double().requires_grad_()
    wanted, _ = other(given[:, :1], given, given, need_weights=False)
    with faster_products(attention):
        found, _ = attention(x[:, :1], x, x, need_weights=False)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)
    assert set(onednn) == {(3, 48, 48), (21, 96, 48)}
    wanted.square().sum().backward()
    found.square().sum().backward()
    for mine, own in zip([x, *attention.parameters()], [given, *other.parameters()], strict=True):
        torch.testing.assert_close(mine.grad.double(), own.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("fixed", [False, True])
def test_so_they_do_under_autocast(fixed):
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(48, 4, batch_first=True).requires_grad_(not fixed), torch.randn(3, 7, 48)
    with torch.autocast("cpu", torch.bfloat16):
        wanted, _ = attention(x[:, :2], x, x, need_weights=False)
        with faster_products(attention, autocast=True, fixed=fixed):
            for _ in range(2):
                found, _ = attention(x[:, :2], x, x, need_weights=False)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-2)


def test_a_weight_that_several_batches_go_back_through_is_turned_once(onednn, monkeypatch):
    """And anew once it has changed, be it written through a view as merges are."""
    monkeypatch.setattr(products, "MANY", 1)
    torch.manual_seed(0)
    layer, other = nn.Linear(48, 80), nn.Linear(48, 80).double()
    with faster_products(layer, repeated=True):
        for _ in range(3):
            with torch.no_grad():
                torch.add(layer.weight.view(-1), torch.randn(80 * 48), out=layer.weight.view(-1))
            other.load_state_dict(layer.state_dict())
            turned = []
            for _ in range(2):
                x = torch.randn(8, 48, requires_grad=True)
                given = x.detach().double().requires_grad_()
                layer(x).square().sum().backward()
                other(given).square().sum().backward()
                torch.testing.assert_close(x.grad.double(), given.grad, rtol=1e-5, atol=1e-4)
                turned.append(layer.turned.of(layer.weight))
            assert turned[0] is turned[1]
            assert torch.equal(turned[0], layer.weight.mT)
    assert not hasattr(layer, "turned")


@pytest.mark.parametrize(
    ("made", "asked"),
    [
        ({}, {"need_weights": True}),
        ({}, {"key_padding_mask": torch.tensor([[False] * 5 + [True] * 2] * 3)}),
        ({}, {"attn_mask": torch.ones(7, 7, dtype=torch.bool).triu(1)}),
        ({}, {"attn_mask": torch.full((12, 7, 7), float("-inf")).triu(1)}),
        ({"batch_first": False}, {}),
        ({"kdim": 48, "vdim": 24}, {"value": torch.ones(3, 7, 24)}),
        ({"add_bias_kv": True}, {}),
        ({"add_zero_attn": True}, {}),
        ({"dropout": 0.5}, {}),
    ],
)  # fmt: skip
def test_any_other_attention_is_as_it_was(onednn, made, asked):
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(48, 4, **{"batch_first": True, **made}), torch.randn(3, 7, 48)
    arguments = {"query": x, "key": x, "value": x, "need_weights": False, **asked}
    torch.manual_seed(1)
    wanted = attention(**arguments)
    torch.manual_seed(1)
    with faster_products(attention):
        found = attention(**arguments)
    assert type(attention) is nn.MultiheadAttention
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert not {(21, 144, 48)} & set(onednn)


def test_nothing_changes_where_torchs_own_is_faster(monkeypatch):
    monkeypatch.setattr(Speeds, "of", lambda *_, **__: SPEEDS)
    layer = nn.Linear(4, 4)
    with faster_products(layer):
        assert type(layer) is nn.Linear


def test_another_dtype_is_torchs_own(onednn):
    layer, x = nn.Linear(48, 80), torch.randn(8, 48)
    with faster_products(layer), torch.inference_mode():
        with pytest.raises(RuntimeError):
            layer(x.double())
        assert not onednn
        layer(x)
        assert onednn


@pytest.mark.parametrize("fixed", [True, False])
def test_autocast_rounds_a_weight_once_and_gives_the_same(monkeypatch, fixed):
    """What learns is rounded anew, also where it is evaluated in between."""
    monkeypatch.setattr(Speeds, "of", lambda *_, **__: SPEEDS)
    rests, learns = nn.Linear(48, 80).requires_grad_(False), nn.Linear(80, 8)
    x = torch.randn(8, 48, requires_grad=True)
    model, plain = nn.Sequential(rests, learns), copy.deepcopy(nn.Sequential(rests, learns))
    with faster_products(model, autocast=True, fixed=fixed), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        for _ in range(2):
            with torch.inference_mode():
                assert torch.equal(model(x), plain(x))
            if fixed:
                continue
            found = [each(x).float().square().sum() for each in (model, plain)]
            gradients = [
                torch.autograd.grad(loss, each[1].weight) for loss, each in zip(found, (model, plain), strict=True)
            ]
            assert torch.equal(*(gradient for (gradient,) in gradients))
            with torch.no_grad():
                for each in (model, plain):
                    each[1].weight.mul_(2)
        assert (bool(rests.rounded), bool(learns.rounded)) == (True, fixed)
        with torch.autocast("cpu", torch.float16):
            assert torch.equal(model[0](x), plain[0](x))
            assert model[0](x).dtype == torch.float16
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]
    assert not {"rounded", "fixed", "turned"} & {*vars(rests), *vars(learns)}


def test_a_language_model_answers_alike(onednn, tmp_path):
    backbone = backbone_of(save_language(tmp_path))
    model, requests = backbone.load(), [Request(text, 12) for text in ("abc", "a b c d", "hg fe")]
    answers = backbone.complete(model, requests, 2, "test")
    assert onednn
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Speeds, "of", lambda *_, **__: SPEEDS)
        assert backbone.complete(model, requests, 2, "test") == answers
