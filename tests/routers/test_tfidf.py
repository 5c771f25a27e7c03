from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from oracles import tfidf as oracle
from router_tasks import task_of, tasks
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression

from twin_merging.config import TfidfRouter as Options
from twin_merging.errors import UserError
from twin_merging.routers import holdout
from twin_merging.routers.tfidf import TfidfRouter, inverse_document_frequency, padded

V, T = 30, 3


def rows_of(task: int, count: int = 60, seed: int = 0) -> list[list[int]]:
    """Rows of different lengths in which tokens repeat; each task has tokens of its own beside those of all."""
    chance = random.Random(f"{task} {seed}")
    own, common = range(5 + 6 * task, 11 + 6 * task), range(5)
    return [chance.choices([*own, *common], k=chance.randint(1, 12)) for _ in range(count)]


def all_rows(count: int = 60, seed: int = 0) -> list[list[list[int]]]:
    return [rows_of(task, count, seed) for task in range(T)]


def drawn(sublinear: bool = True, temperature: float = 1.0, dtype: torch.dtype = torch.float32) -> TfidfRouter:
    """A router of random numbers, which ignores tokens 0 and 7."""
    torch.manual_seed(0)
    idf = 1 + torch.rand(V)
    idf[[0, 7]] = 0
    return TfidfRouter(sublinear, idf, 3 * torch.randn(V, T), torch.randn(T), temperature).to(dtype)


def expected(router: TfidfRouter, row: list[int]) -> np.ndarray:
    numbers = {name: tensor.double().numpy() for name, tensor in router.state_dict().items()}
    f = oracle.features(row, numbers["idf"], bool(numbers["sublinear"]))
    return oracle.probabilities(f @ numbers["weight"] + numbers["bias"], float(numbers["temperature"]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("temperature", [1.0, 0.25, 4.0])
@pytest.mark.parametrize("sublinear", [True, False])
def test_weights_equal_the_oracle_and_sum_to_1(sublinear, temperature, dtype, tolerance):
    router, rows = drawn(sublinear, temperature, dtype), [*rows_of(0), *rows_of(2), [9] * 12, [7, 0, 7], [V, V + 5, 8]]
    weights = router.weights(*padded(rows))
    np.testing.assert_allclose(weights.numpy(), [expected(router, row) for row in rows], atol=tolerance)
    np.testing.assert_allclose(weights.sum(-1).numpy(), 1, atol=1e-6)


@pytest.mark.parametrize("sublinear", [True, False])
def test_features_and_probabilities_are_those_of_scikit_learn(sublinear):
    parts, held = holdout.split(all_rows(), None, 0.25)
    options = Options(sublinear=sublinear, grid=[10.0], holdout=0.25, temperature=1.0)
    router, _ = TfidfRouter.fit(options, all_rows(), tasks(), seed=0)
    trained, others = ([row for part in some for row in part] for some in (parts, held))
    known = [token for token in range(len(router.idf)) if router.idf[token] > 0]
    count = CountVectorizer(analyzer=lambda row: row, vocabulary=known, lowercase=False)
    weigh = TfidfTransformer(sublinear_tf=sublinear).fit(count.transform(trained))
    np.testing.assert_allclose(router.idf[known], weigh.idf_, rtol=1e-6)
    theirs = weigh.transform(count.transform(others))
    np.testing.assert_allclose(router.matrix(others).toarray()[:, known], theirs.toarray(), atol=1e-6)
    model = LogisticRegression(C=10.0, max_iter=1000)
    model.fit(weigh.transform(count.transform(trained)), holdout.labels(parts).numpy())
    np.testing.assert_allclose(router.weights(*padded(others)).numpy(), model.predict_proba(theirs), atol=1e-3)


def test_idf_equals_the_oracle_and_is_0_of_what_no_row_has():
    rows = [[3, 3, 1], [1], [6, 1]]
    np.testing.assert_allclose(inverse_document_frequency(rows).numpy(), oracle.idf(rows, 7), rtol=1e-6)
    assert inverse_document_frequency(rows)[[0, 2, 4, 5]].tolist() == [0] * 4


def test_padding_and_unknown_ids_do_not_count():
    router = drawn()
    row = [9, 3, 9, 12]
    alone = router.weights(torch.tensor([row]))
    left = torch.tensor([[1, 2, *row]])
    torch.testing.assert_close(router.weights(left, torch.tensor([[0, 0, 1, 1, 1, 1]])), alone)
    torch.testing.assert_close(router.weights(torch.tensor([[*row, 0, 7, V, V + 9]])), alone)
    assert not torch.allclose(router.weights(left), alone)


def test_weights_do_not_depend_on_the_batch_nor_on_the_order_of_tokens():
    router, rows = drawn(), rows_of(1, 20)
    together = router.weights(*padded(rows))
    torch.testing.assert_close(torch.cat([router.weights(torch.tensor([row])) for row in rows]), together)
    torch.testing.assert_close(router.weights(*padded([row[::-1] for row in rows])), together)


def test_a_row_without_a_known_token_has_the_weights_of_the_bias():
    router = drawn()
    bias = (router.bias / router.temperature).softmax(-1)
    for row in ([], [0], [7, 7, 0], [V + 1]):
        torch.testing.assert_close(router.weights(*padded([row, [1]]))[0], bias)


def test_fit_learns_to_tell_tasks_apart_and_shuffled_ones_not():
    router, report = TfidfRouter.fit(Options(), all_rows(), tasks(), seed=0)
    assert report["holdout_accuracy"] > 0.9
    for task, rows in enumerate(all_rows(seed=1)):
        assert (router.weights(*padded(rows)).argmax(-1) == task).float().mean() > 0.9
    mixed = [row for part in all_rows(100) for row in part]
    random.Random(0).shuffle(mixed)
    noise = [mixed[task::T] for task in range(T)]
    _, report = TfidfRouter.fit(Options(), noise, tasks(100), seed=0)
    assert 0.1 < report["holdout_accuracy"] < 0.6


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_tasks(count):
    given = all_rows()[:count]
    router, report = TfidfRouter.fit(Options(grid=[10.0], temperature=1.0), given, tasks()[:count], seed=0)
    assert router.weight.shape[1] == count
    assert report["holdout_accuracy"] > 0.9
    weights = router.weights(*padded(rows_of(0)))
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    if count == 2:
        parts, _ = holdout.split(given, None, 0.2)
        x = router.matrix([row for part in parts for row in part])
        theirs = LogisticRegression(C=10.0, max_iter=1000).fit(x, holdout.labels(parts).numpy())
        found = theirs.predict_proba(router.matrix(rows_of(0)))
        np.testing.assert_allclose(weights.numpy(), found, atol=1e-5)


def test_c_and_temperature_are_chosen_on_held_out_rows_by_likelihood():
    options = Options(grid=[0.01, 100.0, 1.0])
    router, report = TfidfRouter.fit(options, all_rows(80), tasks(80), seed=0)
    strength, temperature = report["choices"]
    assert [choice["what"] for choice in report["choices"]] == ["C of the router", "temperature of the router"]
    assert {choice["split"] for choice in report["choices"]} == {"validation"}
    _, held = holdout.split(all_rows(80), None, 0.2)
    x, y = padded([row for part in held for row in part]), holdout.labels(held)
    for C in options.grid:
        alone, its = TfidfRouter.fit(Options(grid=[C]), all_rows(80), tasks(80), seed=0)
        likelihood = holdout.log_likelihood(alone(*x) / alone.temperature, y)  # under the temperature that C has
        assert strength["scores"][str(C)] == pytest.approx(likelihood)
        assert likelihood == pytest.approx(max(its["choices"][1]["scores"].values()))
    assert strength["chosen"] == max(options.grid, key=lambda C: strength["scores"][str(C)]) != options.grid[0]
    at = {value: float(score) for value, score in temperature["scores"].items()}
    assert report["temperature"] == float(router.temperature) == pytest.approx(temperature["chosen"])
    assert at[str(temperature["chosen"])] == max(at.values()) > at["1.0"]


def test_held_out_rows_are_not_trained_on_and_no_more_are_used_than_asked():
    """Every row has a token of its own."""
    marked = [
        [[*row, 100 + 100 * task + number] for number, row in enumerate(rows)] for task, rows in enumerate(all_rows(50))
    ]
    router, report = TfidfRouter.fit(Options(rows=40, holdout=0.25), marked, tasks(50), seed=0)
    assert (report["train_rows"], report["holdout_rows"]) == (90, 30)
    own = [row for row in range(100, len(router.idf)) if router.idf[row] > 0]
    assert own == [100 + 100 * task + number for task in range(T) for number in range(10, 40)]


@pytest.mark.parametrize(("temperature", "key"), [(1.0, "C of the router"), (None, "temperature of the router")])
def test_rows_of_the_test_split_are_refused(temperature, key):
    with pytest.raises(UserError, match="nothing may be selected on test rows") as caught:
        TfidfRouter.fit(Options(temperature=temperature), all_rows(), [*tasks()[:2], task_of("c", 60, test=0)], seed=0)
    assert caught.value.key == key


def test_a_state_gives_the_router_back():
    router = drawn(sublinear=False, temperature=2.5)
    again = TfidfRouter.of_state(router.state_dict())
    assert torch.equal(again.weights(*padded(rows_of(0))), router.weights(*padded(rows_of(0))))


def test_no_matrix_of_batch_and_vocabulary_is_made():
    """With V = 50 million such a matrix of 64 rows would take 12 GB."""
    V = 50_000_000
    router = TfidfRouter(True, torch.ones(1).expand(V), torch.ones(1, 1).expand(V, 1).contiguous(), torch.zeros(1))
    ids = torch.randint(0, V, (64, 10))
    torch.testing.assert_close(router(ids), torch.full((64, 1), 10**0.5))
