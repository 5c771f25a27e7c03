"""The solvers against numpy's SVD in float64: error, orthonormality, slices, hard spectra, and failing drivers."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import svd as oracle
from sparsifiers.matrices import gaussian, spectra, with_spectrum

from twin_merging.sparsifiers import spectrum as module
from twin_merging.sparsifiers.spectrum import BLOCKS, OVERSAMPLING, spectrum

SOLVERS = ["exact", "randomized", "auto"]
HARD = ["zero", "tiny", "huge", "tiniest", "duplicated rows", "one row", "one column", "one number", "rank 1"]


def error(matrix: torch.Tensor, V: torch.Tensor) -> float:
    """‖D − D V Vᵀ‖ in float64, D with its longer side first."""
    tall, V = (matrix if len(matrix) >= matrix.shape[1] else matrix.mT).double(), V.double()
    return float((tall - (tall @ V) @ V.mT).norm())


def excess(matrix: torch.Tensor, V: torch.Tensor) -> float:
    """The error above the best possible, as a share of it; what rounding V to float32 adds is not counted."""
    best, rounding = oracle.tail(matrix.numpy(), V.shape[1]), 1e-6 * float(matrix.double().norm())
    return (error(matrix, V) - float(np.hypot(best, rounding))) / max(best, rounding)


def orthonormal(V: torch.Tensor) -> float:
    return float((V.double().mT @ V.double() - torch.eye(V.shape[1], dtype=torch.float64)).abs().max())


@pytest.mark.parametrize("shape", [(300, 120), (120, 300), (150, 150)])
@pytest.mark.parametrize("kind", spectra(120))
def test_exact_is_within_a_millionth_of_the_best(kind, shape):
    matrix = with_spectrum(*shape, spectra(min(shape))[kind])
    for cap in (1, 7, 64, None):
        S, V = spectrum(matrix, cap, "exact")
        assert excess(matrix, V) < 1e-6
        assert orthonormal(V) < 1e-5
        best = np.linalg.svd(matrix.double().numpy(), compute_uv=False)[: len(S)]
        np.testing.assert_allclose(S.numpy(), best, atol=2e-6 * best[0])


@pytest.mark.parametrize("solver", ["randomized", "auto"])
@pytest.mark.parametrize("kind", ["gaussian", *spectra(30)])
def test_every_rank_up_to_the_cap_is_within_half_a_percent(kind, solver):
    matrix = gaussian(500, 400) if kind == "gaussian" else with_spectrum(500, 400, spectra(400)[kind])
    S, V = spectrum(matrix, 16, solver)
    assert orthonormal(V) < 1e-5
    assert (S.diff() <= 0).all()
    for r in (1, 2, 5, 15, 16):
        assert excess(matrix, V[:, :r]) < 5e-3


@pytest.mark.parametrize(("m", "n"), [(400, 400), (400, 300)])
def test_block_krylov_is_what_the_randomized_solver_runs(m, n, monkeypatch):
    monkeypatch.setattr(module, "_exact", lambda tall, k: pytest.fail("exact"))
    matrix = gaussian(m, n)
    for solver in ("randomized", "auto"):
        assert 1e-5 < excess(matrix, spectrum(matrix, 16 if solver == "randomized" else 2, solver).V) < 5e-3


def test_auto_is_exact_where_the_iteration_would_not_be_faster(monkeypatch):
    monkeypatch.setattr(module, "_krylov", lambda tall, k: pytest.fail("randomized"))
    k = 300 // (3 * BLOCKS[0]) - OVERSAMPLING + 1
    matrix = gaussian(300, 300)
    for solver, cap in (("auto", k), ("auto", None), ("exact", 1), ("randomized", None)):
        assert excess(matrix, spectrum(matrix, cap, solver).V) < 1e-6


@pytest.mark.parametrize("change", [{"TOLERANCE": 1e-9}, {"FLOOR": 1e9}])
def test_an_iteration_that_is_not_close_gives_way_to_the_exact_solver(change, monkeypatch):
    for name, value in change.items():
        monkeypatch.setattr(module, name, value)
    matrix = gaussian(400, 300)
    for solver in ("auto", "randomized"):
        assert excess(matrix, spectrum(matrix, 2, solver).V) < 1e-6


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 0.6, 1.0, 2.0]), st.integers(1, 20))
def test_the_estimate_of_the_error_is_no_promise_broken(seed, power, cap):
    matrix = with_spectrum(260, 260, torch.arange(1, 261, dtype=torch.float64) ** -power, seed)
    assert excess(matrix, spectrum(matrix, cap, "randomized").V) < 5e-3


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", HARD)
def test_hard_matrices_at_every_solver(kind, solver):
    matrix = {
        "zero": torch.zeros(90, 80),
        "tiny": gaussian(90, 80) * 1e-30,
        "huge": gaussian(90, 80) * 1e30,
        "tiniest": gaussian(90, 80) * 1e-42,
        "duplicated rows": gaussian(1, 80).expand(90, 80),
        "one row": gaussian(1, 80),
        "one column": gaussian(80, 1),
        "one number": torch.full((1, 1), -3.0),
        "rank 1": torch.outer(torch.arange(90.0), torch.arange(80.0)),
    }[kind]
    size = float(matrix.double().norm()) or 1.0
    for cap in (1, 3, None):
        S, V = spectrum(matrix, cap, solver)
        assert torch.isfinite(S).all()
        assert orthonormal(V) < 1e-5
        best = oracle.tail(matrix.double().numpy(), len(S))
        assert error(matrix, V) - best < 5e-3 * best + 1e-5 * size


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_matrices(shape):
    S, V = spectrum(torch.zeros(shape), 3)
    assert S.shape == (0,)
    assert V.shape == (0, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="NaN or infinity"):
        spectrum(torch.full((3, 3), value), 1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_matrix_gives_the_same_bits(solver):
    matrix = gaussian(300, 200)
    for first, second in zip(spectrum(matrix, 5, solver), spectrum(matrix.clone(), 5, solver), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("solver", SOLVERS)
def test_transposed_and_scaled(solver):
    matrix = gaussian(300, 200)
    S, V = spectrum(matrix, 5, solver)
    for other, factor in ((matrix.mT, 1), (matrix * 4, 4), (-matrix, 1), (matrix * 2.0**60, 2.0**60)):
        again = spectrum(other, 5, solver)
        torch.testing.assert_close(again.S, S * factor, rtol=1e-5, atol=0)
        projectors = [vectors.double() @ vectors.double().mT for vectors in (again.V, V)]
        torch.testing.assert_close(*projectors, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_stays(dtype):
    for solver in SOLVERS:
        assert {part.dtype for part in spectrum(gaussian(200, 200, dtype=dtype), 2, solver)} == {dtype}


def test_float64_is_exact_far_below_what_squaring_loses():
    S = torch.logspace(0, -11, 30, dtype=torch.float64)
    matrix = with_spectrum(50, 30, S, dtype=torch.float64)
    V = spectrum(matrix, 25, "exact").V
    assert error(matrix, V) == pytest.approx(oracle.tail(matrix.numpy(), 25), rel=1e-4)


def failing(*args, **kwargs):
    raise torch.linalg.LinAlgError("did not converge")


FAILURES = {
    "LAPACK's top eigenvectors": ["scipy.eigh"],
    "all eigenvectors": ["torch.eigh"],
    "both": ["scipy.eigh", "torch.eigh"],
    "both and divide and conquer": ["scipy.eigh", "torch.eigh", "torch.svd"],
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("cap", [2, None])
def test_another_driver_takes_over_where_one_does_not_converge(failure, solver, cap, monkeypatch):
    matrix = gaussian(120, 100)
    for driver in FAILURES[failure]:
        where, name = driver.split(".")
        monkeypatch.setattr({"scipy": scipy.linalg, "torch": torch.linalg}[where], name, failing)
    found = spectrum(matrix, cap, solver)
    monkeypatch.undo()
    assert orthonormal(found.V) < 1e-5
    assert excess(matrix, found.V) < 5e-3


def test_that_nothing_converges_is_said(monkeypatch):
    for where, name in ((torch.linalg, "eigh"), (torch.linalg, "svd"), (scipy.linalg, "eigh"), (scipy.linalg, "svd")):
        monkeypatch.setattr(where, name, failing)
    with pytest.raises(RuntimeError, match=r"\[9, 8\]"):
        spectrum(gaussian(9, 8), 2)


def test_missing_eigenvectors_of_equal_eigenvalues_are_found_elsewhere(monkeypatch):
    real = scipy.linalg.eigh
    monkeypatch.setattr(scipy.linalg, "eigh", lambda *a, **k: tuple(part[..., 1:] for part in real(*a, **k)))
    matrix = gaussian(60, 50)
    assert excess(matrix, spectrum(matrix, 4, "exact").V) < 1e-6
