from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from twin_merging.routers.robustness import confidence_of, flipped, with_new_domain, with_noise

NAMES = ["a", "b", "c"]


def numbered(counts: tuple[int, ...] = (40, 30, 50)) -> list[Tensor]:
    """Rows that say which task and row they are."""
    return [torch.tensor([[task, row] for row in range(count)], dtype=torch.float) for task, count in enumerate(counts)]


def nearest_mean(rows: list[Tensor], _: list[int]) -> Callable[[Tensor], Tensor]:
    """A router that needs no training: softmax of minus the distance to each task's mean."""
    means = torch.stack([part.mean(0) for part in rows])
    return lambda given: (-torch.cdist(given, means) * 4).softmax(-1)


def clusters(seed: int = 0, rows: int = 60, apart: float = 3.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 3, generator=generator) * 0.5 + apart * torch.eye(3)[task] for task in range(3)]


def moved(share: float, seed: int = 0) -> dict[tuple[int, int], int]:
    """(task, row) -> the label it has after flipping."""
    parts = flipped(numbered(), share, seed)
    return {(int(task), int(row)): label for label, part in enumerate(parts) for task, row in part.tolist()}


def test_no_row_is_lost_and_none_made():
    for share in (0.0, 0.3, 1.0):
        assert sorted(moved(share)) == [(task, row) for task, count in enumerate((40, 30, 50)) for row in range(count)]


def test_the_share_of_wrong_labels_is_as_asked_and_each_other_task_is_as_likely():
    parts = [torch.zeros(4000, 1) + task for task in range(3)]
    found = flipped(parts, 0.3, 0)
    for label, part in enumerate(found):
        counts = part.flatten().long().bincount(minlength=3) / 4000
        expected = torch.tensor([0.7 if task == label else 0.15 for task in range(3)])
        torch.testing.assert_close(counts, expected, atol=0.03, rtol=0)


def test_share_0_changes_nothing_and_share_1_every_label():
    parts = numbered()
    assert flipped(parts, 0.0, 0) is parts
    assert all(label != task for (task, _), label in moved(1.0).items())


def test_a_larger_share_flips_what_a_smaller_one_does_and_to_the_same_task():
    wrong = [{key: label for key, label in moved(share).items() if label != key[0]} for share in (0.1, 0.2, 0.4, 1.0)]
    for fewer, more in pairwise(wrong):
        assert fewer.items() < more.items()


def test_a_seed_says_which_and_rows_keep_their_places():
    assert moved(0.3, 0) == moved(0.3, 0) != moved(0.3, 1)
    for part in flipped(numbered(), 0.4, 0):
        places = part[:, 1].tolist()
        assert places == sorted(places)


def test_lists_of_ids_are_flipped_as_tensors_are():
    lists = [[[task, row] for row in range(count)] for task, count in enumerate((40, 30, 50))]
    for left, right in zip(flipped(lists, 0.4, 0), flipped(numbered(), 0.4, 0), strict=True):
        assert left == right.int().tolist()


def test_noise_hurts_and_the_first_share_is_the_clean_router():
    train, test = clusters(0), clusters(1)
    found = with_noise(nearest_mean, train, test, NAMES, [0.0, 0.2, 0.6], 0)
    assert [each["share"] for each in found] == [0.0, 0.2, 0.6]
    clean = nearest_mean(train, [0, 1, 2])
    confidence, right = confidence_of([clean(rows) for rows in test])
    assert found[0]["accuracy"] == pytest.approx(sum(right) / 180)
    assert found[0]["confidence"] == pytest.approx(sum(confidence) / 180)
    assert found[0]["accuracy"] > 0.95 > found[2]["accuracy"]
    for each in found:
        assert sum(each["by_task"].values()) / 3 == pytest.approx(each["accuracy"])  # as the tasks are of one size


def test_which_labels_are_wrong_depends_on_the_seed():
    train, test = clusters(0), clusters(1, apart=1.0)
    found = [with_noise(nearest_mean, train, test, NAMES, [0.3], seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_rows_of_a_new_domain_are_less_certain_and_go_to_other_tasks():
    found = with_new_domain(nearest_mean, clusters(0), clusters(1), NAMES)
    assert found is not None
    assert list(found) == NAMES
    for name, each in found.items():
        assert list(each["goes_to"]) == [other for other in NAMES if other != name]
        assert sum(each["goes_to"].values()) == each["rows"] == 60
        assert each["auroc"] > 0.8
        assert each["accuracy"] > 0.95
        for kind in ("new", "known"):
            assert sum(each[kind]["histogram"]) == pytest.approx(1)
            assert each[kind]["quantiles"] == sorted(each[kind]["quantiles"])
        assert each["new"]["quantiles"][2] < each["known"]["quantiles"][2]


def test_two_tasks_leave_nothing_to_choose_from():
    assert with_new_domain(nearest_mean, clusters()[:2], clusters()[:2], NAMES[:2]) is None


def test_a_router_is_told_which_tasks_its_rows_are_of():
    seen: list[list[int]] = []

    def fit(rows: list[Tensor], tasks: list[int]) -> Callable[[Tensor], Tensor]:
        seen.append(tasks)
        return nearest_mean(rows, tasks)

    with_new_domain(fit, clusters(), clusters(), NAMES)
    assert seen == [[1, 2], [0, 2], [0, 1]]
