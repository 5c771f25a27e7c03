"""Methods and decompositions on a GPU equal those on the CPU."""

from __future__ import annotations

import pytest
import torch
from test_invariants import METHODS

from twin_merging.config import IsoC, TsvMerge
from twin_merging.merging.apply import merge
from twin_merging.merging.iso import iso_c
from twin_merging.merging.tsv import tsv_merge
from twin_merging.sparsifiers.spectrum import spectrum

MATRIX_METHODS = {"tsv_merge": (tsv_merge, TsvMerge()), "iso_c": (iso_c, IsoC())}


@pytest.mark.parametrize("name", [*METHODS, *MATRIX_METHODS])
def test_models_that_lie_there_are_merged_there(name, cuda):
    method, options = {**METHODS, **MATRIX_METHODS}[name]
    generator = torch.Generator().manual_seed(4)

    def state(scale: float = 1.0) -> dict[str, torch.Tensor]:
        shapes = {"layer.weight": (24, 16), "layer.bias": (24,), "scale": ()}
        return {
            key: scale * torch.randn(shape, generator=generator, dtype=torch.float64) for key, shape in shapes.items()
        }

    base = state()
    experts = [{key: base[key] + change for key, change in state(0.1).items()} for _ in range(4)]
    there = [{key: tensor.to(cuda) for key, tensor in each.items()} for each in (base, *experts)]
    wanted = merge(method, options, base, experts, list(base), seed=3)
    found = merge(method, options, there[0], there[1:], list(base), seed=3)
    for key, tensor in wanted.items():
        assert found[key].device.type == cuda
        torch.testing.assert_close(found[key].cpu(), tensor, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(64, 48), (48, 64), (200, 200)])
@pytest.mark.parametrize("cap", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_singular_values(shape, cap, dtype, cuda):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    tall = matrix if shape[0] >= shape[1] else matrix.mT
    exact = torch.linalg.svdvals(matrix.double())
    for solver in ("exact", "auto"):
        S, V = spectrum(matrix.to(cuda), cap, solver)
        assert S.device.type == V.device.type == cuda
        kept = exact[: len(S)].square().sum()
        assert float((tall.to(cuda) @ V).square().sum()) == pytest.approx(
            float(kept), rel=1e-4 if solver == "exact" else 0.1
        )
        torch.testing.assert_close(
            S.cpu().double(), exact[: len(S)], rtol=1e-5 if solver == "exact" else 0.05, atol=1e-5
        )
