"""The product with one matrix that a pass mostly consists of, by the faster of two libraries."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Linear = Callable[..., Tensor]
"""(x (..., n), weight (m, n), bias (m) or None) -> (..., m)."""

KERNELS = ("auto", "stock")
SMALL = 1 << 20  # products of fewer multiplications take no longer than oneDNN's preparations
ADDED = 1 << 20  # numbers that are added to a product at a time
REPEATS = 12  # of which the fastest counts, since others have had to share the machine
GAIN = 1.1  # how much faster a private operator has to be to be taken


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + c by oneDNN, which torch itself uses in compiled models and not in plain ones.

    What it is slow at goes to torch's own: matrices that are not contiguous, and small ones. So does what needs a gradient.
    """
    if x.numel() * len(weight) < SMALL or not weight.is_contiguous() or x.requires_grad:
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")


def add_onednn(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """y += x Wᵀ by oneDNN, for y of (rows, m): some rows at a time, so that what is added is still in the cache."""
    if x.numel() * len(weight) < SMALL or x.requires_grad or y.requires_grad:
        return add_stock(y, x, weight)
    for some, given in zip(y.split(ADDED // len(weight) + 1), x.split(ADDED // len(weight) + 1), strict=True):
        some.add_(onednn(given, weight))
    return y


def add_stock(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """y += x Wᵀ by torch's own product."""
    return y.addmm_(x, weight.mT)


def can_try_onednn(device: str, dtype: torch.dtype) -> bool:
    """Whether this torch may have an operator of oneDNN for such numbers; of bfloat16 its plain product is oneDNN's already."""
    return device == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available()


def fastest(device: str, dtype: torch.dtype) -> str:
    """``onednn`` where this torch has it and it is faster than torch's own product of 2048 x 768 with 768 x 768; else ``stock``."""
    if not can_try_onednn(device, dtype):
        return "stock"
    own = torch.Generator().manual_seed(0)  # what is measured on the way of a training must not move its random numbers
    x, weight = torch.randn(2048, 768, generator=own), torch.randn(768, 768, generator=own)
    try:
        with torch.inference_mode():
            if not torch.allclose(onednn(x, weight), F.linear(x, weight), rtol=1e-3, atol=1e-3):
                return "stock"
            gain = seconds(lambda: F.linear(x, weight)) / seconds(lambda: onednn(x, weight))
    except (AttributeError, RuntimeError):  # an operator that torch promises nobody
        return "stock"
    return "onednn" if gain > GAIN else "stock"


def by_name(name: str) -> Linear:
    """The product called ``stock`` or ``onednn``."""
    return onednn if name == "onednn" else F.linear


def adding(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What adds another product to one, by ``stock`` or ``onednn``: (y (rows, m), x (rows, n), weight (m, n)) -> y."""
    return add_onednn if name == "onednn" else add_stock


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """The least that a few runs take."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return max(min(times), 1e-9)


def block(kernel: str, n: int) -> tuple[int, int]:
    """(rows, examples) of the matrices (rows, n) that are made for some examples at a time, so that they stay in the cache."""
    return (128, 16) if kernel == "stock" else (max(128, 384 * 768 // n), 8)


def each_by_its_own(x: Tensor, own: Tensor, bias: Tensor | None, out: Tensor, kernel: str) -> None:
    """out_b = x_b W_bᵀ + c_b.

    oneDNN is called for one example after the other, as it has no batched product that torch can reach: some 10 µs a call
    beside products of hundreds, which it does twice as fast as torch's batched one.

    Args:
        x: (examples, S, n).
        own: W_b, (examples, rows, n).
        bias: c_b, (examples, 1, rows), or None.
        out: (examples, S, rows).
    """
    if kernel == "stock":
        found = torch.bmm(x, own.mT)
        out.copy_(found) if bias is None else torch.add(found, bias, out=out)
        return
    for example, matrix in enumerate(own):
        out[example] = onednn(x[example], matrix, None if bias is None else bias[example, 0])
