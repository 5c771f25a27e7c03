"""python benchmarks/dynamic.py --json FILE: a batch under weights of its own for each example, against the static model.

A RoBERTa-base-size encoder of random numbers, T = 8 experts, 32 examples of 128 tokens; the same as tokens and experts
grow; then text generation at the size of SmolLM2-135M. All ways of a case run in turns in one process on the same batch.

FILE becomes a list of objects: ``case``, ``rank``, ``plan``, ``kernels`` (whose products of matrices: ``stock`` torch's own,
``auto`` the faster of those and oneDNN's), ``ratio_to_static`` (its median time over that of the static model in the same
kernels), ``ratio_to_stock`` (over that of the static model as torch runs it), ``max_abs_diff`` (of the output, from merging a
model for each example; null where none is computed; of generated tokens the share that differs), ``peak_ratio`` (the memory
that it adds, over what the static model adds). Pictures of the ratios are put beside FILE.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import memory
import torch
from dynamic_pictures import draw
from floors import floors, where_time_goes
from routed_ways import FAST, PLACE, STATIC, Encoder, Ways, decoding
from torch import Tensor

RANKS = (1, 4, 16, 64, 76)
PLANS = ("auto", "factored", "dense")
KERNELS = ("stock", "auto")
SLOW = ("one at a time", "one at a time, dense deltas", "vmap")


def encoder(rank: int, kernels: str) -> Ways:
    """The plans at one rank, and two kinds of weights that take less."""
    batch = Encoder(rank)
    return batch.static(kernels) | batch.plans(PLANS, kernels) | batch.top_one(kernels) | batch.alike(kernels)


def growing(kernels: str, **sizes: int) -> Ways:
    """The plans at rank 16 on a smaller batch."""
    batch = Encoder(16, **{"examples": 16, **sizes})
    return batch.static(kernels) | batch.plans(PLANS, kernels)


def others(kernels: str) -> Ways:
    """What a batch takes with its routing; and, with torch's own products, how else one can go about it."""
    batch = Encoder(16)
    found = batch.static(kernels) | batch.routed(kernels)
    return found | batch.grouped() | batch.one_at_a_time() if kernels == "stock" else found


def measure(case: str, rank: int, kernels: str, ways: Ways, repeats: int, profiled: bool) -> list[dict]:
    """A row for each way, and where the time of some goes."""
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, int | None] = {}
    least: dict[str, dict[str, float | None]] = {}
    found: dict[str, Tensor] = {}
    for turn in range(repeats + 1):  # the first one warms up
        for name, way in ways.items():
            if name in SLOW and turn > 1:
                continue
            before, start = memory.settled(PLACE["device"].type), time.perf_counter()
            found[name] = way.run()
            if PLACE["device"].type == "cuda":
                torch.cuda.synchronize()
            seconds.setdefault(name, []).append(time.perf_counter() - start)
            peaks[name] = memory.added_since(before, PLACE["device"].type)
            least[name] = floors(way.twin)
    times = {name: median(each[1:]) for name, each in seconds.items()}
    rows = []
    for name, way in ways.items():
        peak, usual = peaks[name], peaks[STATIC]
        rows.append(
            {
                "case": case, "rank": rank, "plan": name, "kernels": kernels,
                "ratio_to_static": round(times[name] / times[FAST if FAST in times and name != STATIC else STATIC], 3),
                "ratio_to_stock": round(times[name] / times[STATIC], 3),
                "max_abs_diff": difference(found[name], way.exact()) if way.exact else None,
                "peak_ratio": None if peak is None or usual is None else round(peak / usual, 2),
                **least[name],
            }
        )  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    for name in (STATIC, FAST, "auto") if profiled else ():
        if name in ways:
            print(f"{case}, {name}, {kernels} kernels:\n{where_time_goes(ways[name].run)}", flush=True)
    return rows


def difference(found: Tensor, exact: Tensor) -> float:
    """The largest of the first rows' outputs; of generated tokens the share that differs."""
    first = found[: len(exact)]
    return float((first - exact).abs().max() if exact.is_floating_point() else (first != exact).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--only", default="", help="cases whose name starts with this: encoder, others, tokens, experts, decoding"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of models and knowledge")
    parser.add_argument("--profile", action="store_true", help="print the operations that take most of the time")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    PLACE.update(device=torch.device(asked.device), dtype=getattr(torch, asked.dtype))
    kinds = KERNELS if asked.device == "cpu" else KERNELS[:1]  # oneDNN is the CPU's
    rows: list[dict] = []

    def add(case: str, rank: int, make: Callable[[str], Ways]) -> None:
        for kernels in kinds if case.startswith(asked.only) else ():
            rows.extend(measure(case, rank, kernels, make(kernels), asked.repeats, asked.profile))
            asked.json.write_text(json.dumps(rows, indent=1))

    with torch.inference_mode():
        for rank in RANKS:
            add(f"encoder, rank {rank}", rank, lambda kernels, rank=rank: encoder(rank, kernels))
        add("others, rank 16", 16, others)
        for tokens in (16, 64, 128, 256):
            add(f"tokens {tokens}", 16, lambda kernels, tokens=tokens: growing(kernels, tokens=tokens))
        for experts in (2, 4, 8, 16, 32):
            add(f"experts {experts}", 16, lambda kernels, experts=experts: growing(kernels, experts=experts))
        for rank in (1, 16):
            slow = rank == 16
            add(
                f"decoding 64 tokens, rank {rank}", rank,
                lambda kernels, rank=rank, slow=slow: decoding(rank, 64, kernels, slow and kernels == "stock"),
            )  # fmt: skip
    draw(rows, asked.json)


if __name__ == "__main__":
    main()
