from __future__ import annotations

import pytest
import torch
from router_tasks import task_of, tasks

from twin_merging.errors import UserError
from twin_merging.routers import holdout


@pytest.mark.parametrize(
    ("rows", "share", "held"), [(None, 0.25, [5, 2, 1]), (8, 0.25, [2, 2, 1]), (None, 0.05, [1, 1, 1])]
)
def test_the_first_rows_of_each_task_are_held_out_at_least_one(rows, share, held):
    """Of 20, 8 and 2 rows, as tensors and as lists."""
    counts = (20, 8, 2)
    for inputs in (
        [torch.arange(count).unsqueeze(-1) for count in counts],
        [[[row] for row in range(count)] for count in counts],
    ):
        kept, others = holdout.split(inputs, rows, share)
        used = [min(count, rows or count) for count in counts]
        for part, other, first, count in zip(kept, others, held, used, strict=True):
            assert [int(row[0]) for row in other] == list(range(first))
            assert [int(row[0]) for row in part] == list(range(first, count))


def test_labels_are_the_tasks_in_order():
    assert holdout.labels([[1, 2, 3], [], torch.zeros(2, 4)]).tolist() == [0, 0, 0, 2, 2]


def test_a_temperature_is_the_likeliest_of_the_grid_and_equal_to_the_one_that_made_the_labels():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(20_000, 3, generator=generator)
    y = torch.multinomial((logits / 2).softmax(-1), 1, generator=generator).squeeze(-1)
    choice = holdout.calibrate(logits, y, tasks())
    assert choice["chosen"] == 2
    assert len(choice["scores"]) == 25
    assert choice["scores"]["2.0"] == pytest.approx(holdout.log_likelihood(logits / 2, y))
    assert choice["scores"]["2.0"] == max(choice["scores"].values())


def test_a_temperature_is_not_calibrated_on_test_rows():
    with pytest.raises(UserError, match="nothing may be selected on test rows"):
        holdout.calibrate(torch.zeros(2, 3), torch.zeros(2).long(), [task_of("a", 10, test=0)])


def test_the_report_counts_what_is_right():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 2.0], [0.0, 4.0]])
    found = holdout.report(logits, torch.tensor([0, 1, 1, 1]), 7, 0.5, [])
    assert found == {
        "holdout_accuracy": 0.75, "temperature": 0.5, "train_rows": 7, "holdout_rows": 4, "choices": [],
    }  # fmt: skip
