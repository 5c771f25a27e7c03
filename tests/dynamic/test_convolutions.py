"""Routed convolutions and BatchNorm against a loop that gives every example a layer of its own."""

from __future__ import annotations

import pytest
import torch
from oracles import dynamic as oracle
from torch import nn

from twin_merging.dynamic import convolution
from twin_merging.dynamic.batch_norm import RoutedBatchNorm
from twin_merging.dynamic.convolution import RoutedConv2d
from twin_merging.dynamic.fallback import RoutedByExample
from twin_merging.dynamic.mixture import Mixture
from twin_merging.dynamic.plan import Planner
from twin_merging.dynamic.route import route

B, T = 5, 3
SOFT = torch.randn(B, T, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
HARD = torch.eye(T, dtype=torch.float64)[torch.tensor([2, 0, 2, 1, 0])]
SAME = SOFT[:1].expand(B, -1)
FEW = HARD[torch.tensor([0, 1] * 8)]  # sixteen examples of two weights
WEIGHTS = {"soft": SOFT, "hard": HARD, "same": SAME, "few": FEW}


class One(nn.Module):
    """Holds the layer that is routed, since routing replaces a layer in its parent."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def deltas_of(module: nn.Module, skip: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """Random v_t of every parameter; of statistics, what makes them each task's own, of which no variance is negative."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name, tensor in module.state_dict().items():
        if name.endswith(skip) or not tensor.is_floating_point():
            continue
        drawn = torch.rand(T, *tensor.shape, generator=generator, dtype=torch.float64)
        own = 0.5 + drawn if name.endswith("running_var") else drawn - 0.5
        found[name] = (own - tensor.double() if name.endswith("running_var") else own).to(tensor.dtype)
    return found


def check(
    layer: nn.Module, x: torch.Tensor, form: type, weights: torch.Tensor = SOFT, skip: tuple[str, ...] = ("nothing",)
) -> None:
    module = One(layer).to(x.dtype).eval()
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(len(name))))
    deltas, mixture = deltas_of(module, skip), Mixture()
    with torch.no_grad():
        slow = torch.cat(oracle.outputs(module, deltas, weights, x))
        route(module, deltas, mixture, Planner())
        assert type(module.layer) is form
        mixture.weights = weights.to(x.dtype)
        fast = module(x)
    assert (fast.shape, fast.dtype) == (slow.shape, x.dtype)
    torch.testing.assert_close(fast.double(), slow, rtol=0, atol=1e-10 if x.dtype == torch.float64 else 1e-5)


def images(count: int = B, channels: int = 4, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, channels, 9, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


SHAPES = {
    "overlapping": {"kernel_size": 3, "padding": 1}, "strided": {"kernel_size": 3, "stride": 2, "padding": (0, 2)},
    "pixels": {"kernel_size": 1}, "pixels left out": {"kernel_size": 1, "stride": 2}, "patches": {"kernel_size": 3, "stride": 3},
    "dilated": {"kernel_size": (3, 2), "dilation": 2}, "depthwise": {"kernel_size": 3, "padding": 1, "groups": 4},
    "few places": {"kernel_size": (9, 5), "dilation": 1}, "few places, padded": {"kernel_size": 5, "padding": 1, "stride": (4, 3)},
    "in two groups": {"kernel_size": 3, "padding": 1, "groups": 2}, "grouped pixels": {"kernel_size": 1, "groups": 2},
    "same": {"kernel_size": (4, 3), "padding": "same", "dilation": (1, 2)}, "valid": {"kernel_size": 3, "padding": "valid"},
    "circular": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular"},
    "reflected, same": {"kernel_size": 4, "padding": "same", "padding_mode": "reflect"},
    "circular, valid": {"kernel_size": 3, "padding": "valid", "padding_mode": "circular"},
    "circular patches": {"kernel_size": 2, "stride": 2, "padding": 1, "padding_mode": "circular"},
}  # fmt: skip


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_convolution(shape, weights):
    torch.manual_seed(0)
    given = WEIGHTS[weights]
    check(nn.Conv2d(4, 8, **SHAPES[shape]), images(len(given)), RoutedConv2d, given)


@pytest.mark.parametrize("skip", ["weight", "bias"])
@pytest.mark.parametrize("shape", ["overlapping", "pixels", "depthwise"])
def test_a_convolution_of_which_not_all_merges(shape, skip):
    check(nn.Conv2d(4, 8, **SHAPES[shape]), images(), RoutedConv2d, skip=(skip,))
    check(nn.Conv2d(4, 8, bias=False, **SHAPES[shape]), images(dtype=torch.float32), RoutedConv2d)


def test_a_convolution_part_by_part(monkeypatch):
    monkeypatch.setattr(convolution, "AT_ONCE", 2 * 8 * 4 * 9)
    check(nn.Conv2d(4, 8, 3), images(), RoutedConv2d)


@pytest.mark.parametrize("arguments", [{"stride": 2}, {"stride": (1, 2), "dilation": 2}, {"stride": 2, "groups": 4}])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_convolution_of_timms_that_pads_by_size(arguments, size):
    layers = pytest.importorskip("timm.layers")
    check(layers.Conv2dSame(4, 8, size, **arguments), images(), RoutedConv2d)


def test_a_convolution_whose_code_is_another_runs_by_itself():
    class Standardized(nn.Conv2d):
        def forward(self, x):
            return nn.functional.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)

    check(Standardized(4, 8, 3), images(), RoutedByExample)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("skip", ["nothing", "weight", "bias", "running_mean", "running_var"])
def test_a_batch_norm(skip, weights, dtype):
    given = WEIGHTS[weights]
    check(nn.BatchNorm2d(4), images(len(given), dtype=dtype), RoutedBatchNorm, given, (skip,))


def test_a_batch_norm_of_vectors_and_one_without_a_gain():
    x = torch.randn(B, 4, dtype=torch.float64)
    check(nn.BatchNorm1d(4), x, RoutedBatchNorm)
    check(nn.BatchNorm1d(4), x.unsqueeze(-1).expand(-1, -1, 3), RoutedBatchNorm)
    check(nn.BatchNorm2d(4, affine=False), images(), RoutedBatchNorm)


def test_a_batch_norm_of_timms_that_activates():
    layers = pytest.importorskip("timm.layers")
    check(layers.BatchNormAct2d(4, act_layer=nn.ReLU6, drop_layer=nn.Identity), images(), RoutedBatchNorm)


def test_other_batch_norms_run_by_themselves():
    check(nn.BatchNorm3d(4), images().unsqueeze(2), RoutedByExample)


def test_a_variance_is_never_below_zero():
    module, mixture = One(nn.BatchNorm2d(4)).double().eval(), Mixture()
    route(module, {"layer.running_var": torch.full((T, 4), -2.0, dtype=torch.float64)}, mixture, Planner())
    mixture.weights = SOFT
    with torch.no_grad():
        torch.testing.assert_close(module(images()), images() / module.layer.shared.eps**0.5)


def test_without_weights_the_shared_layers_answer():
    module = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)).double().eval()
    with torch.no_grad():
        expected = module(images())
        route(module, deltas_of(module), Mixture(), Planner())
        assert torch.equal(module(images()), expected)
