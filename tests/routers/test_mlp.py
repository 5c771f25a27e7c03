from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import router as oracle
from router_tasks import task_of, tasks
from torch import nn
from torch.nn import functional as F

from twin_merging.config import MlpRouter as Options
from twin_merging.errors import UserError
from twin_merging.routers import holdout
from twin_merging.routers.mlp import MlpRouter
from twin_merging.routers.oracle import oracle_weights


def clusters(rows: int = 60, d: int = 6, spread: float = 0.3, seed: int = 0) -> list[torch.Tensor]:
    """Three tasks' features, around three far points."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.eye(d)[:3]
    return [centre + spread * torch.randn(rows, d, generator=generator) for centre in centres]


def trained_router(options: Options, d: int = 6, T: int = 3) -> MlpRouter:
    """A router whose norms have running statistics that are not those of initialization."""
    torch.manual_seed(0)
    router = MlpRouter(options, d, T).train()
    for _ in range(5):
        router(2 + 3 * torch.randn(32, d))
    for norm in (router.layers[1], router.layers[5]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return router


def test_three_linear_layers_with_norm_leaky_relu_and_dropout_between():
    layers = MlpRouter(Options(dropout=0.4), hidden=6, experts=5).layers
    block = [nn.Linear, nn.BatchNorm1d, nn.LeakyReLU, nn.Dropout]
    assert [type(layer) for layer in layers] == [*block, *block, nn.Linear]
    assert [(layers[i].in_features, layers[i].out_features) for i in (0, 4, 8)] == [(6, 12), (12, 12), (12, 5)]
    assert (layers[3].p, layers[7].p) == (0.4, 0.4)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
def test_weights_equal_the_numpy_oracle_and_sum_to_1(temperature):
    router = trained_router(Options(temperature=temperature))
    features = torch.randn(20, 6)
    weights = router.weights(features)
    state = {name: tensor.numpy() for name, tensor in router.state_dict().items() if name != "temperature"}
    np.testing.assert_allclose(weights.numpy(), oracle.forward(state, features.numpy(), temperature), atol=1e-5)
    np.testing.assert_allclose(weights.sum(-1).numpy(), 1, atol=1e-6)
    assert (weights >= 0).all()


def test_weights_do_not_depend_on_the_batch_nor_on_dropout():
    router = trained_router(Options())
    features = torch.randn(8, 6)
    router.train()
    together = router.weights(features)
    assert torch.equal(together, router.weights(features))
    torch.testing.assert_close(torch.cat([router.weights(row) for row in features.split(1)]), together)


def test_the_temperature_is_stored_with_the_router():
    router = trained_router(Options(temperature=2.5))
    other = MlpRouter(Options(temperature=1.0), 6, 3)
    other.load_state_dict(router.state_dict())
    features = torch.randn(4, 6)
    assert torch.equal(other.weights(features), router.weights(features))


def test_fit_learns_a_separable_problem():
    router, report = MlpRouter.fit(Options(epochs=8, lr=5e-3, batch_size=16), clusters(), tasks(), seed=0)
    assert report["holdout_accuracy"] == 1.0
    for task, features in enumerate(clusters(seed=1)):
        assert (router.weights(features).argmax(-1) == task).float().mean() > 0.98


def test_fit_on_noise_stays_near_chance():
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(100, 6, generator=generator) for _ in range(3)]
    _, report = MlpRouter.fit(Options(epochs=3), noise, tasks(100), seed=0)
    assert 0.1 < report["holdout_accuracy"] < 0.6


def test_fit_is_determined_by_its_seed():
    options = Options(epochs=2, batch_size=16)
    first, again, other = (MlpRouter.fit(options, clusters(), tasks(), seed)[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


def test_report_counts_rows_and_records_the_choice():
    _, report = MlpRouter.fit(Options(epochs=3, holdout=0.2), clusters(50), tasks(50), seed=0)
    assert (report["train_rows"], report["holdout_rows"]) == (120, 30)
    (choice,) = report["choices"]
    assert choice["what"] == "epoch of the router"
    assert choice["split"] == "validation"
    assert list(choice["scores"]) == ["1", "2", "3"]
    assert choice["chosen"] == max(range(1, 4), key=lambda epoch: choice["scores"][str(epoch)])
    assert report["temperature"] == 1.0


def test_at_most_the_asked_rows_of_a_task_are_used():
    _, report = MlpRouter.fit(Options(epochs=1, rows=20, holdout=0.5), clusters(60), tasks(60), seed=0)
    assert (report["train_rows"], report["holdout_rows"]) == (30, 30)


def test_held_out_rows_are_not_trained_on(monkeypatch):
    """Each row carries its own number as a feature, and what the router sees while training is written down."""
    features = [torch.cat([rows, torch.full((len(rows), 1), 0.0)], 1) for rows in clusters(40)]
    for task, rows in enumerate(features):
        rows[:, -1] = torch.arange(40) + 100 * task
    trained: set[float] = set()
    evaluated: set[float] = set()
    forward = MlpRouter.forward

    def spy(self, x):
        (trained if self.training else evaluated).update(x[:, -1].tolist())
        return forward(self, x)

    monkeypatch.setattr(MlpRouter, "forward", spy)
    MlpRouter.fit(Options(epochs=2, holdout=0.25), features, tasks(40), seed=0)
    assert len(evaluated) == 30
    assert len(trained) == 90
    assert not trained & evaluated
    assert {int(row) // 100 for row in evaluated} == {0, 1, 2}


def test_calibration_lowers_the_held_out_cross_entropy():
    # overlapping clusters and many epochs make an overconfident router, which a higher temperature mends
    features = clusters(80, spread=3.0)
    options = Options(epochs=40, lr=1e-2, batch_size=16, dropout=0.0, temperature=None)
    router, report = MlpRouter.fit(options, features, tasks(80), seed=0)
    _, held = holdout.split(features, options.rows, options.holdout)
    logits, held_y = router.logits(torch.cat(held)), holdout.labels(held)
    entropy = {t: float(F.cross_entropy(logits / t, held_y)) for t in (1.0, report["temperature"])}
    assert report["temperature"] != 1.0
    assert entropy[report["temperature"]] < entropy[1.0]
    assert report["choices"][1]["chosen"] == pytest.approx(report["temperature"])
    assert float(router.temperature) == report["temperature"]


def test_rows_of_the_test_split_are_refused():
    leaky = [*tasks()[:2], task_of("c", 60, test=0)]
    with pytest.raises(UserError, match="nothing may be selected on test rows") as caught:
        MlpRouter.fit(Options(epochs=1), clusters(), leaky, seed=0)
    assert caught.value.key == "epoch of the router"
    assert "c" in caught.value.found


def test_a_last_batch_of_one_row_is_left_out():
    router, _ = MlpRouter.fit(Options(epochs=1, batch_size=47), clusters(20), tasks(20), seed=0)
    assert all(torch.isfinite(tensor).all() for tensor in router.state_dict().values())


def test_oracle_weights_are_one_hot():
    assert oracle_weights(2, 3, 4).tolist() == [[0.0, 0.0, 1.0, 0.0]] * 3
