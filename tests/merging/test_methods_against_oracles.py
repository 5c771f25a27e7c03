"""Every static method against its oracle, on random and on awkward tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import merging as oracle

from twin_merging.config import Pretrained, TaskArithmetic, WeightAveraging
from twin_merging.merging.apply import merge
from twin_merging.merging.averaging import finetuned, pretrained, weight_averaging
from twin_merging.merging.task_arithmetic import task_arithmetic
from twin_merging.merging.twin import exclusive_knowledge

SHAPES = [(), (1,), (7,), (3, 5), (5, 3), (2, 3, 4), (0,)]


def random_case(seed: int, dtype: torch.dtype) -> tuple[dict, list[dict]]:
    """A base and one to five experts, a tensor of each shape; some tensors zero, some experts equal to the base."""
    generator = torch.Generator().manual_seed(seed)
    base = {f"p{i}": torch.randn(shape, generator=generator).to(dtype) for i, shape in enumerate(SHAPES)}
    base["zeros"] = torch.zeros(4, 4, dtype=dtype)
    experts = []
    for _ in range(1 + seed % 5):
        scale = float(10.0 ** torch.randint(-3, 3, (), generator=generator))
        experts.append(
            {
                name: (x.float() + scale * torch.randn(x.shape, generator=generator)).to(dtype)
                for name, x in base.items()
            }
        )
    if seed % 3 == 0:
        experts[0] = {name: tensor.clone() for name, tensor in base.items()}
    return base, experts


def merged_by(method, options, base, experts) -> dict[str, torch.Tensor]:
    return merge(method, options, base, experts, list(base))


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(12))
def test_methods_equal_their_oracles(seed, dtype):
    base, experts = random_case(seed, dtype)
    scaling = (-1.0, 0.0, 0.3, 1.0)[seed % 4]
    cases = [
        (task_arithmetic, TaskArithmetic(scaling=scaling), lambda b, e: oracle.task_arithmetic(b, e, scaling)),
        (weight_averaging, WeightAveraging(), oracle.weight_averaging),
        (pretrained, Pretrained(), lambda b, e: b),
    ]
    digits = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-8}[dtype]
    for method, options, slow in cases:
        fast = merged_by(method, options, base, experts)
        for name, tensor in base.items():
            mine = [as_numpy(expert[name]) for expert in experts]
            largest = max([1.0, *(float(np.abs(values).max()) for values in mine if values.size)])
            assert fast[name].dtype == dtype
            assert fast[name].shape == tensor.shape
            np.testing.assert_allclose(
                as_numpy(fast[name]), slow(as_numpy(tensor), mine), atol=digits * largest * len(mine), rtol=0
            )


def test_bfloat16_is_merged_in_float32_and_rounded_once():
    # in bfloat16, 0.0099 - 1 would already be rounded to two digits
    base = {"w": torch.ones(1, dtype=torch.bfloat16)}
    experts = [{"w": torch.tensor([0.0099], dtype=torch.bfloat16)}]
    fast = merged_by(task_arithmetic, TaskArithmetic(scaling=1.0), base, experts)["w"]
    assert torch.equal(fast, experts[0]["w"])


@pytest.mark.parametrize("seed", range(4))
def test_gamma_weighs_every_expert_by_itself(seed):
    base, experts = random_case(seed, torch.float64)
    gamma = [0.5 - 0.75 * index for index in range(len(experts))]
    merged = merged_by(task_arithmetic, TaskArithmetic(scaling=0.3, gamma=gamma), base, experts)
    for name, start in base.items():
        moves = [
            weight * (as_numpy(expert[name]) - as_numpy(start)) for weight, expert in zip(gamma, experts, strict=True)
        ]
        np.testing.assert_allclose(as_numpy(merged[name]), as_numpy(start) + 0.3 * sum(moves), atol=1e-10, rtol=0)


def test_one_expert_at_scaling_1_is_the_expert():
    base, experts = random_case(5, torch.float64)
    assert len(experts) == 1
    for method, options in ((task_arithmetic, TaskArithmetic(scaling=1.0)), (weight_averaging, WeightAveraging())):
        fast = merged_by(method, options, base, experts)
        for name, tensor in experts[0].items():
            torch.testing.assert_close(fast[name], tensor, rtol=1e-12, atol=1e-12)


def test_scaling_1_over_t_is_the_average():
    base, experts = random_case(4, torch.float64)
    arithmetic = merged_by(task_arithmetic, TaskArithmetic(scaling=1 / len(experts)), base, experts)
    average = merged_by(weight_averaging, WeightAveraging(), base, experts)
    for name in base:
        torch.testing.assert_close(arithmetic[name], average[name], rtol=1e-12, atol=1e-12)


def test_finetuned_gives_every_expert():
    base, deltas = torch.randn(3, 2, dtype=torch.float64), torch.randn(4, 3, 2, dtype=torch.float64)
    experts = finetuned(base, deltas, None)
    assert experts.shape == (4, 3, 2)
    for t in range(4):
        torch.testing.assert_close(experts[t], base + deltas[t])


@pytest.mark.parametrize("shape", SHAPES)
def test_exclusive_knowledge_equals_its_oracle(shape):
    generator = torch.Generator().manual_seed(len(shape))
    shared = torch.randn(shape, generator=generator, dtype=torch.float64)
    experts = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    _, fast = exclusive_knowledge({"w": shared}, [{"w": expert} for expert in experts], ["w"]).whole("w")
    np.testing.assert_allclose(
        fast.numpy(), oracle.exclusive_knowledge(list(experts.numpy()), shared.numpy()), atol=1e-14
    )
