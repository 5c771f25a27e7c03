"""What multiplies: torch's own product or oneDNN's, the same numbers by either."""

from __future__ import annotations

import pytest
import torch

from twin_merging.dynamic import kernels


def test_onednn_is_taken_only_where_it_is_right_and_faster(monkeypatch):
    assert kernels.fastest("cpu", torch.float64) == "stock"
    monkeypatch.setattr(kernels, "can_try_onednn", lambda *_: True)
    for onednn, gain, expected in (
        (torch.nn.functional.linear, 1.2, "onednn"), (torch.nn.functional.linear, 1.0, "stock"),
        (lambda x, weight: x @ weight.mT + 1, 2.0, "stock"), (lambda x, weight: torch.ops.mkldnn.no_such, 2.0, "stock"),
    ):  # fmt: skip
        times = iter([gain, 1.0])
        monkeypatch.setattr(kernels, "seconds", lambda _, times=times: next(times))
        monkeypatch.setattr(kernels, "onednn", onednn)
        assert kernels.fastest("cpu", torch.float32) == expected


def test_a_product_that_needs_a_gradient_gets_it():
    x, weight = torch.randn(4, 600, requires_grad=True), torch.randn(600, 600)
    kernels.onednn(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(4, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not kernels.can_try_onednn("cpu", torch.float32), reason="this torch has no oneDNN")
@pytest.mark.parametrize("numbers", [1, 1000, 1 << 20])
def test_a_product_is_added_some_rows_at_a_time(numbers, monkeypatch):
    monkeypatch.setattr(kernels, "ADDED", numbers)
    torch.manual_seed(0)
    y, x, weight = torch.randn(50, 300), torch.randn(50, 100), torch.randn(300, 100)
    for size, taken in ((0, True), (x.numel() * len(weight) + 1, False)):
        monkeypatch.setattr(kernels, "SMALL", size)
        calls, of = [], kernels.onednn
        monkeypatch.setattr(kernels, "onednn", lambda *given, calls=calls, of=of: calls.append(1) or of(*given))
        found = y.clone()
        assert kernels.adding("onednn")(found, x, weight) is found
        torch.testing.assert_close(found, y + x @ weight.mT, rtol=1e-4, atol=1e-4)
        assert bool(calls) == taken
        monkeypatch.setattr(kernels, "onednn", of)
    inner, other = torch.randn(50, 100, requires_grad=True), y.clone()
    kernels.adding("onednn")(other, inner, weight).sum().backward()  # in place and with a gradient: torch's own
    torch.testing.assert_close(inner.grad, weight.sum(0).expand(50, -1), rtol=1e-4, atol=1e-4)


def test_onednn_gets_no_matrix_that_it_is_slow_at(monkeypatch):
    taken = []
    monkeypatch.setattr(
        kernels.F, "linear", lambda x, weight, bias=None: taken.append(weight.stride()) or x @ weight.mT
    )
    x, square = torch.randn(64, 600), torch.randn(600, 600)
    kernels.onednn(x, square.mT)
    kernels.onednn(x[:1], square)
    assert taken == [(1, 600), (600, 1)]
