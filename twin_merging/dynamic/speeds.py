"""How fast this machine multiplies and moves numbers, measured once and kept in the user's cache folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from twin_merging.dynamic.kernels import block, by_name, each_by_its_own, fastest, seconds
from twin_merging.measure import machine

VERSION = 6  # of what is measured


@dataclass(frozen=True)
class Speeds:
    """Floating-point operations a second of four kinds of product, bytes a second, and what an operation takes at least.

    Args:
        product: of a batch's tokens with one matrix.
        thin: with a matrix of few columns.
        batched: of each example's tokens with a matrix of its own, some rows of it.
        mixed: of weights with experts' matrices.
        bytes: read or written.
        made: bytes of matrices that products of factors write to memory that was not in use.
        call: seconds of an operation that has next to nothing to do.
        kernel: by which library products with one matrix are computed.
    """

    product: float
    thin: float
    batched: float
    mixed: float
    bytes: float
    made: float = inf
    call: float = 0.0
    kernel: str = "stock"

    @classmethod
    def of(cls, device: str, width: int = 4, kernels: str = "auto") -> Speeds:
        """This machine's, as measured before with the same number of threads, or measured now (a tenth of a second).

        Args:
            device: its type.
            width: bytes of a number.
            kernels: ``auto`` takes the faster library for products with one matrix, ``stock`` torch's own.
        """
        kind = torch.bfloat16 if width == 2 else torch.float64 if width == 8 else torch.float32
        key = f"{VERSION} {machine(device)}, {kind}, torch {torch.__version__}, {kernels}"
        known = _read(_file())
        if key not in known:
            known = _with(key, lambda: asdict(measure(device, kind, kernels)))
        return cls(**known[key])


def measure(device: str, dtype: torch.dtype, kernels: str = "auto") -> Speeds:
    """Time products of the shapes that the plans make."""
    tokens, n, few, examples, experts = 2048, 768, 64, 16, 8
    kernel = fastest(device, dtype) if kernels == "auto" else "stock"
    linear, (rows, _) = by_name(kernel), block(kernel, n)
    generator = torch.Generator(device).manual_seed(
        0
    )  # of its own: the first expert of a machine is trained while this measures

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, generator=generator).to(dtype)

    x, W, V, whole = drawn(tokens, n), drawn(n, n), drawn(few, n), drawn(experts + 1, n * n)
    own, each, w = drawn(examples, n, n), drawn(examples, tokens // examples, n), drawn(examples, experts + 1)
    left, right = drawn(experts, n, 16), drawn(experts, 16, n)
    large = torch.ones(1 << 25, device=device)  # more than a cache holds
    copied = torch.empty_like(large)
    made, y = drawn(examples, rows * n), drawn(examples, tokens // examples, n)

    def mix() -> None:
        for part in whole.split(rows * n, 1):  # from memory, as experts' matrices do not stay in the cache
            torch.mm(w, part, out=made)

    def product() -> None:
        for start in range(0, n, rows):
            each_by_its_own(each, own[:, start : start + rows], None, y[..., start : start + rows], kernel)

    with torch.inference_mode():
        return Speeds(
            product=2 * tokens * n * n / seconds(lambda: linear(x, W), device),
            thin=2 * tokens * n * few / seconds(lambda: linear(x, V), device),
            batched=2 * tokens * n * n / seconds(product, device),
            mixed=2 * examples * experts * n * n / seconds(mix, device),
            made=whole[1:].nbytes / seconds(lambda: torch.bmm(left, right), device),
            bytes=2 * large.nbytes / seconds(lambda: copied.copy_(large), device),
            call=seconds(lambda: made[0, :8].mul_(1.0), device),
            kernel=kernel,
        )


def _file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twin_merging" / "speeds.json"


def _read(file: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def _with(key: str, find: Callable[[], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What is known, with ``key`` found by the first process that asks, so that all of them choose the same plans.

    Where the folder cannot be written to, every process finds it anew.
    """
    file = _file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            known = _read(file)
            if key not in known:
                known[key] = find()
                unfinished = file.with_name(f".{file.name}.{os.getpid()}")
                unfinished.write_text(json.dumps(known, indent=1))
                os.replace(unfinished, file)
            return known
    except OSError:
        return {key: find()}
