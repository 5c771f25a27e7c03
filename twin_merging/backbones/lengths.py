"""Which rows of several lengths are read together."""

from __future__ import annotations

from collections.abc import Sequence

import torch

TOKENS_OF_A_PASS = {"cpu": 64}
"""By kind of device, of how many more tokens a pass takes as much time as a further one, which reads all weights anew."""


def by_length(lengths: Sequence[int], most: int, device: torch.device) -> list[list[int]]:
    """Row numbers in batches of at most ``most``, the longest rows first, that are read in the least time.

    A batch takes as many tokens as all its rows padded to the longest, and those of one pass.
    """
    one = TOKENS_OF_A_PASS.get(device.type, 1024)
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    costs, starts = [0], [0]  # of the first rows in order: the least cost, and where their last batch starts
    for stop in range(1, len(order) + 1):
        cost, start = min(
            (costs[start] + one + (stop - start) * lengths[order[start]], start)
            for start in range(max(0, stop - most), stop)
        )
        costs.append(cost)
        starts.append(start)
    batches: list[list[int]] = []
    stop = len(order)
    while stop:
        batches.insert(0, order[starts[stop] : stop])
        stop = starts[stop]
    return batches
