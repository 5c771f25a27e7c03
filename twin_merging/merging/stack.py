"""θ₀ and the experts of one architecture side by side, read whole or in cache-sized pieces by several workers.

Whatever device the tensors are on, the CPU merges them: each number is read once and little is done with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from threading import Condition
from typing import Any, TypeVar

import torch
from torch import Tensor

from twin_merging.progress import progress

BLOCK = 1 << 16  # numbers of a piece: those of eight experts fit a core's cache
TURN = 64 * BLOCK  # numbers that a worker takes at a time
SMALL = 1 << 23  # numbers of parameters that may be in flight together, however small the largest is
Result = TypeVar("Result")


class Stack:
    """The parameters to merge.

    Args:
        base: θ₀ by name.
        experts: θ_t by name, each.
        names: the parameters that merge; integer buffers never do.
    """

    def __init__(self, base: Mapping[str, Tensor], experts: Sequence[Mapping[str, Tensor]], names: Iterable[str]):
        self.base, self.experts = base, list(experts)
        self.names = [name for name in names if base[name].is_floating_point()]

    def __len__(self) -> int:
        return len(self.experts)

    def size(self, name: str) -> int:
        """How many numbers the parameter has."""
        return self.base[name].numel()

    def whole(self, name: str, of: str = "deltas") -> tuple[Tensor, Any]:
        """θ₀ of the parameter's shape and τ_t (or θ_t) stacked to (T, *shape), in float32 or wider."""
        base = self.base[name]
        wide = torch.promote_types(base.dtype, torch.float32)
        if of == "views":
            return base.to("cpu", wide), [expert[name].to("cpu", wide) for expert in self.experts]
        stacked = torch.empty((len(self), *base.shape), dtype=wide)
        for row, expert in zip(stacked, self.experts, strict=True):
            row.copy_(expert[name])
        base = base.to("cpu", wide)
        return base, stacked.sub_(base) if of == "deltas" else stacked

    def pieces(
        self, name: str, first: int = 0, last: int | None = None, of: str = "deltas"
    ) -> Iterator[tuple[int, Tensor, Any]]:
        """(start, θ₀ (n,), τ_t or θ_t (T, n)) of numbers ``first`` to ``last``, in float32 or wider.

        The stacked piece is overwritten by the next one.
        """
        base = self.base[name].reshape(-1)
        experts = [expert[name].reshape(-1) for expert in self.experts]
        last = len(base) if last is None else last
        wide = torch.promote_types(base.dtype, torch.float32)
        if of == "views":
            size = 4 * BLOCK if base.dtype == wide else BLOCK  # where nothing is copied, two pieces are in the cache
            for start in range(first, last, size):
                part = slice(start, min(start + size, last))
                yield start, base[part].to("cpu", wide), [expert[part].to("cpu", wide) for expert in experts]
            return
        buffer = torch.empty((len(experts), min(BLOCK, last - first)), dtype=wide)
        for start in range(first, last, BLOCK):
            stop = min(start + BLOCK, last)
            here, stacked = base[start:stop].to("cpu", wide), buffer[:, : stop - start]
            for row, expert in zip(stacked, experts, strict=True):
                if of == "deltas" and expert.dtype == wide and expert.device == here.device:
                    torch.sub(expert[start:stop], here, out=row)
                else:
                    row.copy_(expert[start:stop])
                    if of == "deltas":
                        row.sub_(here)
            yield start, here, stacked

    def turns(self, names: Iterable[str]) -> Iterator[tuple[str, int, int]]:
        """(name, first, last): the numbers that one worker reads at a time."""
        for name in names:
            size = self.size(name)
            yield from ((name, first, min(first + TURN, size)) for first in range(0, max(size, 1), TURN))


def in_parallel(
    function: Callable[..., Result],
    jobs: Sequence[tuple],
    label: str,
    cost: Callable[..., int] | None = None,
    amount: Callable[..., int] | None = None,
) -> Iterator[tuple[tuple, Result]]:
    """``function(*job)`` of each job, on all cores, with progress; (job, result) as they come.

    Args:
        cost: a job's numbers in memory: so many jobs run at once as together need no more than the largest alone, or than
            ``SMALL``.
        amount: a job's share of the progress; 1 without it.

    Raises:
        Exception: the first of a job; jobs that had not started by then never do.
    """
    workers = max(1, min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, len(jobs)))
    room = _Room(max([SMALL, *(cost(*job) for job in jobs)]) if cost else 0)
    total = sum(amount(*job) for job in jobs) if amount else len(jobs)

    def run(job: tuple) -> Result:
        with room.of(cost(*job) if cost else 0):
            return function(*job)

    with progress(label, total, "numbers" if amount else "tensors") as bar, _one_thread_each(workers) as pool:
        futures = {pool.submit(run, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                job = futures.pop(future)
                bar.advance(amount(*job) if amount else 1)
                yield job, future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _one_thread_each(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Workers that compute on one core each; torch's own threads are as before afterwards."""
    before = torch.get_num_threads()
    initializer = (lambda: torch.set_num_threads(1)) if workers > 1 else None
    try:
        with ThreadPoolExecutor(workers, initializer=initializer) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


class _Room:
    """Memory that jobs share: one waits while the others leave it too little."""

    def __init__(self, total: int):
        self.left, self._changed = total, Condition()

    @contextmanager
    def of(self, amount: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self.left >= amount)
            self.left -= amount
        try:
            yield
        finally:
            with self._changed:
                self.left += amount
                self._changed.notify_all()
