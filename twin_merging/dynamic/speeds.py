"""How fast this machine multiplies and moves numbers, measured once and kept in the user's cache folder."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from filelock import FileLock

VERSION = 4  # of what is measured
REPEATS = 12  # of which the fastest counts, since others have had to share the machine


@dataclass(frozen=True)
class Speeds:
    """Floating-point operations a second of four kinds of product, and bytes a second.

    Args:
        product: of a batch's tokens with one matrix.
        thin: with a matrix of few columns.
        batched: of each example's tokens with a matrix of its own, some rows of it.
        mixed: of weights with experts' matrices.
        bytes: read or written.
    """

    product: float
    thin: float
    batched: float
    mixed: float
    bytes: float

    @classmethod
    def of(cls, device: str, width: int = 4) -> Speeds:
        """This machine's, as measured before with the same number of threads, or measured now (a tenth of a second)."""
        kind = torch.bfloat16 if width == 2 else torch.float64 if width == 8 else torch.float32
        where = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
        key = f"{VERSION} {where} {device} {kind} {torch.get_num_threads()} threads, torch {torch.__version__}"
        known = _read(_file())
        if key not in known:
            known = _with(key, lambda: asdict(measure(device, kind)))
        return cls(**known[key])


def measure(device: str, dtype: torch.dtype) -> Speeds:
    """Time products of the shapes that the plans make."""
    tokens, n, few, examples, rows, experts = 2048, 768, 64, 16, 128, 8

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    x, W, V, whole, shared = drawn(tokens, n), drawn(n, n), drawn(few, n), drawn(experts, n * n), drawn(1, rows * n)
    own, each, w = drawn(examples, rows, n), drawn(examples, tokens // examples, n), drawn(examples, experts)
    large = torch.ones(1 << 25, device=device)  # more than a cache holds
    copied = torch.empty_like(large)

    def mix() -> None:
        for part in whole.split(rows * n, 1):  # from memory, as experts' matrices do not stay in the cache
            torch.bmm(each, torch.addmm(shared, w, part).view(examples, rows, n).mT)

    with torch.inference_mode():
        apart = _seconds(lambda: torch.bmm(each, own.mT), device)
        together = _seconds(mix, device) * rows / n
        product = 2 * tokens * n * n / _seconds(lambda: x @ W.mT, device)
        return Speeds(
            product=product,
            thin=2 * tokens * n * few / _seconds(lambda: x @ V.mT, device),
            batched=2 * tokens * n * rows / apart,
            mixed=min(2 * examples * experts * rows * n / max(together - apart, 1e-9), product),
            bytes=2 * large.nbytes / _seconds(lambda: copied.copy_(large), device),
        )


def _seconds(work: Callable[[], object], device: str) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return max(min(times), 1e-9)


def _file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twin_merging" / "speeds.json"


def _read(file: Path) -> dict[str, dict[str, float]]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def _with(key: str, find: Callable[[], dict[str, float]]) -> dict[str, dict[str, float]]:
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
