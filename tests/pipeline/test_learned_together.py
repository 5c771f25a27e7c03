"""AdaMerging's passes: how many tasks go through at once, with the same entropy and gradient as one after the other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from backbones.tiny_images import backbone_of, colour_task, save_encoder
from backbones.tiny_learning import RUN, encoder_of, in_doubles

from twin_merging.config import AdaMerging
from twin_merging.pipeline import data_methods

TASKS = [colour_task(name, 16, seed=place) for place, name in enumerate("abc")]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return in_doubles(backbone_of(save_encoder(tmp_path_factory.mktemp("models") / "vit", "vit")))


def passes(backbone, monkeypatch, **options) -> tuple[list[int], float, torch.Tensor]:
    """Rows of each pass of one step; the entropies' sum and its gradient by every parameter."""
    torch.manual_seed(0)
    (encoder, _), seen = encoder_of(backbone, TASKS, monkeypatch), []
    encoder.register_forward_pre_hook(
        lambda module, _, named: seen.append(len(named["pixel_values"])), with_kwargs=True
    )
    loss = data_methods._entropy_of(RUN, TASKS, encoder, AdaMerging(inputs="validation", **options))()
    return seen, loss, torch.cat([each.grad.flatten() for each in encoder.parameters() if each.grad is not None])


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"batch_size": 16}, [32, 16]),
        ({"batch_size": 8}, [24]),
        ({"batch_size": 40}, [40, 40, 40]),
        ({"batch_size": 8, "rows_at_once": 1}, [8, 8, 8]),
        ({"batch_size": 8, "rows_at_once": 23}, [16, 8]),
        ({"batch_size": 8, "rows_at_once": 24}, [24]),
    ],
)
def test_several_tasks_go_through_at_once_and_learn_the_same(backbone, monkeypatch, options, wanted):
    seen, loss, gradient = passes(backbone, monkeypatch, **options)
    alone, expected, by_one = passes(backbone, monkeypatch, **{**options, "rows_at_once": 1})
    assert seen == wanted
    assert alone == [options["batch_size"]] * 3
    assert loss == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient, by_one, rtol=1e-5, atol=1e-9)


def test_rows_of_several_lengths_go_task_by_task():
    texts, images = SimpleNamespace(lengths=[3, 5]), SimpleNamespace(lengths=[9, 9])
    assert data_methods._tasks_at_once([images, images], AdaMerging()) == 2
    assert data_methods._tasks_at_once([images, texts], AdaMerging()) == 1
