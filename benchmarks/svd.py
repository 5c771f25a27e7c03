"""python benchmarks/svd.py --json FILE: the decompositions of exclusive knowledge, ours against others.

All run in one process on the same number of threads, in turns, on the same matrices: independent normal numbers, whose flat
spectrum is the hardest, and sums of LoRA products. FILE becomes a list of objects: ``case``, ``implementation``,
``ratio_to_ours`` (its median processor seconds over ours), ``peak_ratio`` (the memory it adds, over what ours adds; null
where that cannot be measured), and ``error_over_optimal`` (its Frobenius error over that of the best approximation of the
same rank).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import memory
import torch
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits
from torch import Tensor

from twin_merging.sparsifiers.low_rank import svd_of_sums
from twin_merging.sparsifiers.svd import Factors, decompose

SHAPES = [(768, 768), (3072, 768), (768, 3072), (50265, 768)]
EXPERTS, SCALING = 8, 0.3


@dataclass(frozen=True)
class Case:
    """One task and who can do it; ``ours`` is among the implementations. Each gives Factors of the matrices."""

    name: str
    implementations: dict[str, Callable[[], Factors]]
    matrices: Callable[[], Tensor]
    repeats: int = 5


def cases() -> Iterator[Case]:
    """All comparisons, each made when it is reached."""
    for m, n in SHAPES:
        D = torch.randn(1, m, n, generator=torch.Generator().manual_seed(m + n))
        repeats = 5 if m * n < 10**7 else 2
        for rank, solver in ((64, "exact"), (16, "exact"), (16, "randomized")):
            yield Case(f"{m} x {n}, rank {rank}, {solver}", _single(D, rank, solver), lambda D=D: D, repeats)
    for m, n in ((768, 768), (3072, 768), (4096, 4096)):
        for rank in (8, 32):
            large = m * n > 10**7
            yield _lora(m, n, rank, 1 if large else 1 + EXPERTS, 1 if large else 3)


def _single(D: Tensor, rank: int, solver: str) -> dict[str, Callable[[], Factors]]:
    def torch_svd() -> Factors:
        U, S, Vt = torch.linalg.svd(D, full_matrices=False)
        return Factors(U[..., :rank].clone(), S[:, :rank].clone(), Vt[:, :rank].mT.clone())

    def sklearn_svd() -> Factors:
        U, S, Vt = randomized_svd(D[0].numpy(), rank, random_state=0)
        return Factors(*(torch.from_numpy(part.copy()).unsqueeze(0) for part in (U, S, Vt.T)))

    others: dict[str, Callable[[], Factors]] = {"torch.linalg.svd": torch_svd}
    if solver == "randomized":
        others["sklearn randomized_svd"] = sklearn_svd
    return {"ours": lambda: decompose(D, rank, solver), **others}


def _lora(m: int, n: int, rank: int, rows: int, repeats: int) -> Case:
    """Shared delta and v_t of eight adapters (or v_1 alone) at the adapters' rank."""
    generator = torch.Generator().manual_seed(rank)
    left = [torch.randn(m, rank, generator=generator) for _ in range(EXPERTS)]
    right = [torch.randn(rank, n, generator=generator) for _ in range(EXPERTS)]
    weights = torch.cat([torch.eye(EXPERTS) - SCALING, torch.full((1, EXPERTS), SCALING)])[:rows]

    def sums() -> Tensor:
        products = torch.stack([B @ A for B, A in zip(left, right, strict=True)])
        return torch.tensordot(weights, products, 1)

    def torch_svd() -> Factors:
        found = [torch.linalg.svd(matrix, full_matrices=False) for matrix in sums()]
        U, S, V = zip(*((U[:, :rank], S[:rank], Vt[:rank].mT) for U, S, Vt in found), strict=True)
        return Factors(torch.stack(U), torch.stack(S), torch.stack(V))

    ours = {"ours": lambda: svd_of_sums(left, right, weights, rank), "torch.linalg.svd of the sums": torch_svd}
    return Case(f"LoRA rank {rank}, {m} x {n}, {rows} of {EXPERTS}", ours, sums, repeats)


def measure(case: Case) -> list[dict]:
    """A row for each implementation."""
    seconds: dict[str, list[float]] = {name: [] for name in case.implementations}
    peaks: dict[str, int | None] = {}
    found: dict[str, Factors] = {}
    for _ in range(case.repeats + (case.repeats > 1)):  # the first turn warms up, unless a turn takes minutes
        for name, implementation in case.implementations.items():
            before = memory.settled()
            start = time.process_time()
            found[name] = implementation()
            seconds[name].append(time.process_time() - start)
            peaks[name] = memory.added_since(before)
    for times in seconds.values():
        del times[: len(times) - case.repeats]
    ours, peak = median(seconds["ours"]), peaks["ours"]
    matrices = case.matrices()
    best = optimal(matrices, found["ours"].S.shape[1])
    return [
        {
            "case": case.name, "implementation": name, "ratio_to_ours": round(median(seconds[name]) / ours, 2),
            "peak_ratio": None if peak is None or peaks[name] is None else round(peaks[name] / peak, 2),
            "error_over_optimal": round(float((error(matrices, found[name]) / best).max()), 7),
        }
        for name in case.implementations
    ]  # fmt: skip


def optimal(matrices: Tensor, r: int) -> Tensor:
    """The smallest possible Frobenius error of rank r, of each matrix."""
    shorter = matrices if matrices.shape[1] >= matrices.shape[2] else matrices.mT
    grams = torch.stack([matrix.double().mT @ matrix.double() for matrix in shorter])
    return torch.linalg.eigvalsh(grams)[:, : grams.shape[1] - r].clamp_min(0).sum(1).sqrt()


def error(matrices: Tensor, factors: Factors) -> Tensor:
    """‖D − U S Vᵀ‖ of each matrix, in float64, some rows at a time."""
    U, S, V = (part.double() for part in factors)
    squares = torch.zeros(len(matrices), dtype=torch.float64)
    for rows in torch.arange(matrices.shape[1]).split(2048):
        rest = matrices[:, rows].double() - (U[:, rows] * S.unsqueeze(1)) @ V.mT
        squares += rest.square().sum((1, 2))
    return squares.sqrt()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    with threadpool_limits(arguments.threads):
        for case in cases():
            if arguments.only in case.name:
                for row in measure(case):
                    print(json.dumps(row), flush=True)
                    rows.append(row)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
