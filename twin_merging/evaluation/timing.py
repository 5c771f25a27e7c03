"""Seconds of several ways to do the same work, in turns, so that what slows the machine down slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

LEAST, MOST = 3, 7  # rounds


def in_turns(
    ways: Mapping[str, Callable[[], object]], budget: float = 3.0, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Run each way once unmeasured, then all in turns, 3 to 7 times: until ``budget`` seconds are spent.

    Args:
        ways: name -> what is measured; it returns when its work is done.
        budget: seconds after which no more than the least rounds are begun.

    Returns:
        name -> seconds of each round. Their median is what to report: a pause of the machine is in one round.
    """
    for run in ways.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in ways}
    start = clock()
    for number in range(MOST):
        if number >= LEAST and clock() - start > budget:
            break
        for name, run in ways.items():
            before = clock()
            run()
            found[name].append(clock() - before)
    return found


def waited_for(way: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """``way``, which returns when the device is done with it."""

    def run() -> None:
        way()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()

    return run
