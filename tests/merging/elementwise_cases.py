"""Models on which elementwise methods are tested, and the task vectors as they are computed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SHAPES = {
    "scalar": (),
    "one": (1,),
    "vector": (7,),
    "matrix": (5, 4),
    "cube": (2, 3, 4),
    "empty": (0,),
    "zeros": (3, 3),
}
State = dict[str, Tensor]


def coarse(seed: int, experts: int, dtype: torch.dtype = torch.float32) -> tuple[State, list[State]]:
    """Small multiples of 1/16: every dtype holds them, sums are exact, magnitudes tie, experts cancel out."""
    return _case(seed, experts, dtype, lambda shape, generator: torch.randint(-3, 4, shape, generator=generator) / 16)


def smooth(seed: int, experts: int, dtype: torch.dtype = torch.float32) -> tuple[State, list[State]]:
    """Normal numbers, of another size in each expert."""

    def draw(shape: tuple, generator: torch.Generator) -> Tensor:
        return 10.0 ** float(torch.randint(-3, 1, (), generator=generator)) * torch.randn(shape, generator=generator)

    return _case(seed, experts, dtype, draw)


def equal_sizes(seed: int, experts: int, dtype: torch.dtype = torch.float32) -> tuple[State, list[State]]:
    """Each number ± the same."""

    def draw(shape: tuple, generator: torch.Generator) -> Tensor:
        return (torch.randint(0, 2, shape, generator=generator) - 0.5) / 4

    return _case(seed, experts, dtype, draw)


CASES = {"coarse": coarse, "smooth": smooth, "equal_sizes": equal_sizes}


def _case(seed: int, experts: int, dtype: torch.dtype, draw) -> tuple[State, list[State]]:
    generator = torch.Generator().manual_seed(seed)
    base = {name: (torch.randint(-16, 17, shape, generator=generator) / 16).to(dtype) for name, shape in SHAPES.items()}
    states = []
    for _ in range(experts):
        states.append({name: (x.double() + draw(x.shape, generator)).to(dtype) for name, x in base.items()})
        states[-1]["zeros"] = base["zeros"].clone()
    return base, states


def task_vectors(base: State, experts: list[State]) -> list[dict[str, np.ndarray]]:
    """τ_t as numpy arrays, subtracted in float32 or wider as merging does."""
    wide = {name: torch.promote_types(x.dtype, torch.float32) for name, x in base.items()}
    return [
        {name: (expert[name].to(wide[name]) - x.to(wide[name])).numpy() for name, x in base.items()}
        for expert in experts
    ]


def as_numpy(state: State) -> dict[str, np.ndarray]:
    """In float64."""
    return {name: x.double().numpy() for name, x in state.items()}


def assert_equals_oracle(merged: State, expected: dict[str, np.ndarray], like: State) -> None:
    """The same up to the rounding of the dtype, with the shapes and dtypes of ``like``."""
    for name, x in like.items():
        assert merged[name].dtype == x.dtype
        assert merged[name].shape == x.shape
        digits = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-8}[x.dtype]
        np.testing.assert_allclose(
            merged[name].double().numpy(), expected[name], rtol=digits, atol=digits, err_msg=name
        )
