from __future__ import annotations

import pytest
import torch

from twin_merging.config import Expert
from twin_merging.errors import UserError
from twin_merging.merging.apply import merge
from twin_merging.merging.expert import expert

SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4), (0,)]


def states(dtype: torch.dtype, number: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {f"p{i}": torch.randn(shape, generator=generator).to(dtype) for i, shape in enumerate(SHAPES)}
        for _ in range(number)
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_it_is_the_expert_to_the_last_bit(index, dtype):
    base, *experts = states(dtype, 4)
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in experts]
    merged = merge(expert, Expert(index=index), base, experts, [*base])
    for name in base:
        assert merged[name].dtype == dtype
        assert torch.equal(merged[name], experts[index][name])
        assert all(torch.equal(state[name], copy[name]) for state, copy in zip(experts, before, strict=True))


def test_what_is_not_selected_stays_the_base():
    base, only = states(torch.float32, 2)
    assert torch.equal(merge(expert, Expert(), base, [only], ["p2"])["p3"], base["p3"])


def test_one_that_is_not_there_is_refused():
    base, only = states(torch.float32, 2)
    with pytest.raises(UserError, match="no such expert") as caught:
        merge(expert, Expert(index=1), base, [only], [*base])
    assert (caught.value.key, caught.value.found, caught.value.expected) == ("merge_method.index", 1, "0 to 0")
