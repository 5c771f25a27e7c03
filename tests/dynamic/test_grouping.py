"""Groups of the paper's appendix E."""

from __future__ import annotations

import torch

from twin_merging.dynamic.grouping import group, group_means


def weights_of(rows: int = 200, seed: int = 0) -> torch.Tensor:
    return (3 * torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))).softmax(-1)


def test_a_group_has_one_top_expert_and_the_mean_of_its_weights():
    weights = weights_of()
    numbers, means = group(weights, 5)
    assert numbers.shape == (200,)
    assert len(means) == 4 * 5
    for number, mean in enumerate(means):
        members = weights[numbers == number]
        assert len(members)
        assert len(members.argmax(-1).unique()) == 1
        torch.testing.assert_close(mean, members.mean(0))


def test_one_group_an_expert_is_the_mean_of_its_bin_and_many_groups_are_the_rows_themselves():
    weights = weights_of(30)
    numbers, means = group(weights, 1)
    for expert in range(4):
        rows = weights.argmax(-1) == expert
        if rows.any():
            torch.testing.assert_close(means[numbers[rows][0]], weights[rows].mean(0))
    numbers, means = group(weights, 30)
    torch.testing.assert_close(means[numbers], weights)


def test_rows_that_are_the_same_need_no_more_groups_than_there_are_of_them():
    weights = torch.eye(3)[torch.tensor([0, 0, 1, 1, 1])]
    numbers, means = group(weights, 20)
    assert len(means) == 2
    assert torch.equal(means[numbers], weights)


def test_nearby_rows_come_together():
    low, high = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.6, 0.4]])
    weights = torch.cat([low + 0.001 * torch.randn(10, 1) * torch.tensor([1, -1]), high.expand(10, -1)])
    numbers, _ = group(weights, 2)
    assert len(numbers[:10].unique()) == len(numbers[10:].unique()) == 1


def test_tasks_are_grouped_together_and_come_back_apart():
    first, second = weights_of(40, 1), weights_of(60, 2)
    found = group_means({"a": first, "b": second}, 3)
    numbers, means = group(torch.cat([first, second]), 3)
    assert torch.equal(torch.cat([found["a"], found["b"]]), means[numbers])
    assert len(found["a"]) == 40
