"""Singular values and the singular vectors of the shorter side, from which every rank's factors are one product away."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import scipy.linalg
import torch
from torch import Tensor

OVERSAMPLING = 8  # columns of a Krylov block beyond the rank
BLOCKS = 3, 6  # Krylov blocks: at first, at most
TOLERANCE = 2e-3  # of the estimated error above the best possible, as a share of that
SAFETY = 1.5  # on the estimate: on flat spectra the true excess was up to 1.35 times it
FLOOR = 1e-3  # squared error over σ₁² below which float32 squares lose too much
FAILURES = torch.linalg.LinAlgError, scipy.linalg.LinAlgError
SAFE = 1e-12, 1e12  # largest entries whose squares neither overflow nor vanish in float32


class Spectrum(NamedTuple):
    """The top k of a matrix: S (k), falling, and V (min(m, n), k), the singular vectors of the shorter side."""

    S: Tensor
    V: Tensor


def spectrum(matrix: Tensor, cap: int | None = None, solver: str = "auto") -> Spectrum:
    """Top singular values and the orthonormal singular vectors of the shorter side, valid at every rank up to ``cap``.

    With D the matrix, its longer side first, the columns of D·V are orthogonal and ‖D V_k‖ = S_k: the best approximation
    of rank r is (D V_r) V_rᵀ. The result depends on nothing but the arguments.

    Args:
        matrix: (m, n), on any device.
        cap: how many; None for all min(m, n).
        solver: ``exact``: the eigen-decomposition of the smaller Gram matrix, in float32 where the error that is left is
            far above what squaring loses, else in float64. ``randomized``: block Krylov iteration with Rayleigh-Ritz at
            the end (Musco and Musco 2015) wherever its blocks are narrower than the matrix. ``auto``: randomized where that
            is faster. Either way exact after all where the iteration's own estimate of its error does not come within
            0.2 % of the best possible.

    Raises:
        ValueError: if the matrix holds NaN or infinity.
        RuntimeError: if every decomposition fails to converge.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    n = tall.shape[1]
    k = n if cap is None else min(cap, n)
    lowest, highest = torch.aminmax(tall) if tall.numel() else (tall.new_zeros(()),) * 2
    largest = max(-float(lowest), float(highest))
    if not math.isfinite(largest):
        raise ValueError("a matrix with NaN or infinity has no singular values")
    if largest == 0:
        return Spectrum(tall.new_zeros(k), torch.eye(n, k, dtype=tall.dtype, device=tall.device))
    if not SAFE[0] < largest < SAFE[1]:
        S, V = spectrum(tall / largest, cap, solver)
        return Spectrum(S * largest, V)
    width = BLOCKS[0] * (k + OVERSAMPLING)
    if (solver == "randomized" and width < n) or (solver == "auto" and 3 * width <= n):
        with suppress(*FAILURES):
            found = _krylov(tall, k)
            if found is not None:
                return found
    return _exact(tall, k)


def tails(S: Tensor, squared: Tensor) -> Tensor:
    """‖D‖² − Σ_{k≤r} S_k² for r = 1, 2, ...: the squared error of each rank, at least 0."""
    return (squared - S.double().square().cumsum(-1)).clamp_min(0)


def squared_norm(matrix: Tensor) -> Tensor:
    """‖D‖², summed in float64 over norms of what lies together in memory."""
    rows = matrix if matrix.stride(-1) == 1 else matrix.mT
    return torch.linalg.vector_norm(rows, dim=-1).double().square().sum()


def _krylov(tall: Tensor, k: int) -> Spectrum | None:
    """The top k from the span of DᵀDΩ, (DᵀD)²Ω, ...; None if that is not seen to be close to the best possible."""
    n, width, squared = tall.shape[1], k + OVERSAMPLING, squared_norm(tall)
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(n, width, generator=generator, dtype=torch.float32).to(tall)
    V, images = tall.new_empty(n, 0), [block.mT @ tall.mT]  # (D·block)ᵀ, as rows: a sixth faster than D·block
    for count in range(1, min(BLOCKS[1], n // width) + 1):
        block = (images[-1] @ tall).mT
        for _ in range(min(count, 2)):  # the second time makes it orthogonal also where it was almost in the span
            block = torch.linalg.qr(block - V @ (V.mT @ block))[0]
        V, images = torch.cat([V, block], 1), [*images, block.mT @ tall.mT]
        if count >= BLOCKS[0]:
            gram = _gram(torch.cat(images[1:]).double().mT)
            if _excess(gram, width, count, k, squared) <= TOLERANCE:
                if not torch.allclose(_gram(V), torch.eye(V.shape[1]).to(V), atol=1e-4):
                    return None
                values, vectors = _eigh(gram)
                return Spectrum(_roots(values, k).to(tall), V @ vectors[:, -k:].flip(1).to(tall))
    return None


def _excess(gram: Tensor, width: int, count: int, k: int, squared: Tensor) -> float:
    """Estimate of the worst share, over all ranks up to k, by which the error is above the best possible.

    What the last block added to the captured energy, continued as the geometric series that the last two make. The
    energies of fewer blocks come from the leading parts of the same Gram matrix. Infinite where float32 cannot tell.
    """
    energies = [
        torch.linalg.eigvalsh(gram[: blocks * width, : blocks * width]).flip(0)[:k].cumsum(0)
        for blocks in (count - 2, count - 1, count)
    ]
    rest = squared - energies[2]
    if rest[-1] < FLOOR * energies[2][0]:
        return float("inf")
    before, gain = energies[1] - energies[0], (energies[2] - energies[1]).clamp_min(0)
    ratio = (gain / before.clamp_min(1e-30)).clamp_max(0.9)
    return float((SAFETY * gain * ratio / (1 - ratio) / rest / 2).max())


def _exact(tall: Tensor, k: int) -> Spectrum:
    """The top k by the first decomposition that converges and loses too little to notice by squaring."""
    n, squared = tall.shape[1], squared_norm(tall)
    attempts: list[tuple[Callable[[Tensor, int], Spectrum], float]] = [
        (_wide_gram, 1e-12 if tall.dtype == torch.float64 else 0.0), (_svd, 0.0), (_svd_by_qr, 0.0),
    ]  # fmt: skip
    if k < n and tall.dtype == torch.float32:
        attempts.insert(0, (_narrow_gram, FLOOR))
    for attempt, floor in attempts:
        try:
            S, V = attempt(tall, k)
        except FAILURES:
            continue
        if k == n or tails(S, squared)[-1] >= floor * S[0].double().square():
            return Spectrum(S.to(tall), V.to(tall))
    raise RuntimeError(f"no decomposition of a matrix of {list(tall.shape)} converged")


def _ritz(tall: Tensor, V: Tensor) -> Spectrum:
    """Rayleigh-Ritz: the singular values and vectors of D within the span of V, whose columns become orthonormal."""
    V = torch.linalg.qr(V)[0]
    values, vectors = _eigh(_gram((tall @ V).double()))
    return Spectrum(_roots(values, V.shape[1]).to(tall), V @ vectors.flip(1).to(tall))


def _gram(matrix: Tensor) -> Tensor:
    return matrix.mT @ matrix


def _roots(eigenvalues: Tensor, k: int) -> Tensor:
    return eigenvalues[-k:].flip(0).clamp_min(0).sqrt()


def _narrow_gram(tall: Tensor, k: int) -> Spectrum:
    """In float32; on a CPU the eigenvectors of the top k only."""
    gram, n = _gram(tall), tall.shape[1]
    if gram.device.type != "cpu":
        return _ritz(tall, _eigh(gram)[1][:, -k:])
    _, vectors = scipy.linalg.eigh(gram.numpy(), subset_by_index=(n - k, n - 1), check_finite=False)
    if vectors.shape[1] < k:  # among equal eigenvalues, bisection may miss some
        raise torch.linalg.LinAlgError
    return _ritz(tall, torch.from_numpy(vectors))


def _wide_gram(tall: Tensor, k: int) -> Spectrum:
    """In float64, where squaring loses what lies 8 orders below σ₁."""
    return _top(*_eigh(_gram(tall.double())), k)


def _svd(tall: Tensor, k: int) -> Spectrum:
    """Without squaring, by divide and conquer."""
    _, S, Vt = torch.linalg.svd(tall.double(), full_matrices=False)
    return Spectrum(S[:k], Vt[:k].mT)


def _svd_by_qr(tall: Tensor, k: int) -> Spectrum:
    """Without squaring, by QR iteration, which converges where divide and conquer does not."""
    _, S, Vt = scipy.linalg.svd(tall.double().cpu().numpy(), full_matrices=False, lapack_driver="gesvd")
    return Spectrum(torch.from_numpy(S[:k]).to(tall.device), torch.from_numpy(Vt[:k]).to(tall.device).mT)


def _top(values: Tensor, vectors: Tensor, k: int) -> Spectrum:
    return Spectrum(_roots(values, k), vectors[:, -k:].flip(1))


def _eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, rising, and eigenvectors: by divide and conquer, else by QR iteration."""
    try:
        return torch.linalg.eigh(symmetric)
    except FAILURES:
        values, vectors = scipy.linalg.eigh(symmetric.cpu().numpy(), driver="ev", check_finite=False)
        return torch.from_numpy(values).to(symmetric.device), torch.from_numpy(vectors).to(symmetric.device)
