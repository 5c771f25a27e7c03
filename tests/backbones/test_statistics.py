"""Statistics from hooks equal those of plain loops over examples, labels and tokens."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import fisher as oracle
from tiny_models import WORDS, save_model

from twin_merging.backbones import squares, statistics
from twin_merging.backbones.sequence_classifier import SequenceClassifierBackbone, Tokens
from twin_merging.config import SequenceClassifier
from twin_merging.errors import UserError

KINDS = ["bert", "roberta", "electra", "distilbert"]


def backbone_of(folder: Path) -> SequenceClassifierBackbone:
    options = SequenceClassifier(pretrained=str(folder), max_length=32)
    return SequenceClassifierBackbone(options, folder, torch.device("cpu"), autocast=False)


def some_tokens(backbone: SequenceClassifierBackbone, count: int = 7, pairs: bool = False) -> Tokens:
    """Texts of very different lengths, in which words repeat."""
    chance = random.Random(0)

    def text() -> str:
        return " ".join(chance.choices(WORDS[:8], k=chance.randint(1, 12)))

    return backbone.tokenize([(text(), text()) if pairs else (text(),) for _ in range(count)])


def alone(tokens: Tokens) -> list[dict[str, torch.Tensor]]:
    """Each row as a batch of its own, without padding."""
    return [{name: torch.tensor([values]) for name, values in row.items()} for row in tokens.rows]


def check(found: dict[str, torch.Tensor], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=1e-8, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("batch_size", [3, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_fisher_is_that_of_a_loop_over_examples_and_labels(tmp_path, kind, batch_size):
    folder = save_model(tmp_path, kind)
    backbone = backbone_of(folder)
    model = backbone.load(folder, num_labels=3).double()
    tokens = some_tokens(backbone, pairs=kind == "bert")
    found = statistics.diagonal_fisher(backbone, model, tokens, "expectation", [], batch_size, 0, "test")
    check(found, oracle.diagonal_fisher(model, backbone.encoder(model), alone(tokens), None))
    weights = [name for name in found if name.endswith("query.weight") or name.endswith("q_lin.weight")]
    assert all(found[name].max() > 1e-6 for name in weights)  # else zeros would do


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_fisher_of_true_labels_takes_those(tmp_path, kind):
    folder = save_model(tmp_path, kind)
    backbone = backbone_of(folder)
    model, tokens = backbone.load(folder, num_labels=3).double(), some_tokens(backbone)
    truth = [0, 2, 2, 1, 0, 1, 2]
    found = statistics.diagonal_fisher(backbone, model, tokens, "true", truth, 3, 0, "test")
    check(found, oracle.diagonal_fisher(model, backbone.encoder(model), alone(tokens), truth))


def test_sampled_labels_have_the_expectation_as_their_mean(tmp_path):
    folder = save_model(tmp_path, "bert")
    backbone = backbone_of(folder)
    model, tokens = backbone.load(folder, num_labels=3), some_tokens(backbone, 4)
    exact = statistics.diagonal_fisher(backbone, model, tokens, "expectation", [], 8, 0, "test")
    many = Tokens(tokens.rows * 500)
    drawn = statistics.diagonal_fisher(backbone, model, many, "sampled", [], 500, 0, "test")
    again = statistics.diagonal_fisher(backbone, model, many, "sampled", [], 500, 0, "test")
    other = statistics.diagonal_fisher(backbone, model, many, "sampled", [], 500, 1, "test")
    name = "pooler.dense.weight"
    assert torch.equal(drawn[name], again[name])
    assert not torch.equal(drawn[name], other[name])
    assert abs(drawn[name].sum() / exact[name].sum() - 1) < 0.15


@pytest.mark.parametrize("labels", ["expectation", "true"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_regression_is_a_gaussian(tmp_path, kind, labels):
    folder = save_model(tmp_path, kind, num_labels=1)
    backbone = backbone_of(folder)
    model, tokens = backbone.load(folder, 1, regression=True).double(), some_tokens(backbone)
    truth = [0.5, 1.0, -2.0, 3.0, 0.0, 1.5, 2.0]
    found = statistics.diagonal_fisher(backbone, model, tokens, labels, truth, 3, 0, "test")
    known = truth if labels == "true" else None
    check(found, oracle.gaussian_fisher(model, backbone.encoder(model), alone(tokens), known))


def test_a_sampled_regression_has_the_expectation_as_its_mean(tmp_path):
    folder = save_model(tmp_path, "bert", num_labels=1)
    backbone = backbone_of(folder)
    model, tokens = backbone.load(folder, 1, regression=True), some_tokens(backbone, 2)
    exact = statistics.diagonal_fisher(backbone, model, tokens, "expectation", [], 8, 0, "test")
    drawn = statistics.diagonal_fisher(backbone, model, Tokens(tokens.rows * 1000), "sampled", [], 500, 0, "test")
    assert abs(drawn["pooler.dense.weight"].sum() / exact["pooler.dense.weight"].sum() - 1) < 0.15


def test_small_chunks_give_the_same(tmp_path, monkeypatch):
    folder = save_model(tmp_path, "bert")
    backbone = backbone_of(folder)
    model, tokens = backbone.load(folder, num_labels=3).double(), some_tokens(backbone)
    whole = statistics.diagonal_fisher(backbone, model, tokens, "expectation", [], 5, 0, "test")
    monkeypatch.setattr(squares, "CHUNK", 1)
    check(
        statistics.diagonal_fisher(backbone, model, tokens, "expectation", [], 5, 0, "test"),
        {name: values.numpy() for name, values in whole.items()},
    )


def test_autocast_gives_nearly_the_same(tmp_path):
    folder = save_model(tmp_path, "bert")
    exact, rough = backbone_of(folder), backbone_of(folder)
    rough.autocast = True
    model, tokens = exact.load(folder, num_labels=3), some_tokens(exact)
    expected = statistics.diagonal_fisher(exact, model, tokens, "expectation", [], 5, 0, "test")
    found = statistics.diagonal_fisher(rough, model, tokens, "expectation", [], 5, 0, "test")
    for name, values in expected.items():  # a key's bias changes no answer: what is found for it is rounding
        assert (found[name] - values).norm() <= 0.1 * values.norm() + 1e-7, name
        assert not torch.equal(found[name], values), name


def test_layers_whose_examples_mix_are_refused(tmp_path):
    folder = save_model(tmp_path, "deberta")  # it reads relative positions once for all examples
    backbone = backbone_of(folder)
    model, tokens = backbone.load(folder, num_labels=3), some_tokens(backbone)
    with pytest.raises(UserError, match="each single example") as caught:
        statistics.diagonal_fisher(backbone, model, tokens, "expectation", [], 5, 0, "test")
    assert "fisher with" in caught.value.found


@pytest.mark.parametrize("kind", [*KINDS, "deberta"])
def test_grams_are_sums_over_real_tokens(tmp_path, kind):
    folder = save_model(tmp_path, kind)
    backbone = backbone_of(folder)
    encoder, tokens = backbone.encoder(backbone.load(folder, num_labels=3)).double(), some_tokens(backbone)
    found, layer_of = statistics.grams(backbone, encoder, tokens, 3, "test")
    linear = {name for name, module in encoder.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {f"{name}.weight" for name in linear} == set(layer_of)
    assert len(found) < len(layer_of)  # query, key and value read the same
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in linear}
    for name in linear:
        encoder.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs, name=name: seen[name].append(inputs[0])
        )
    with torch.no_grad():
        for example in alone(tokens):
            encoder(**example)
    for parameter, layer in layer_of.items():
        name = parameter.removesuffix(".weight")
        if kind == "deberta" and name.endswith(("key_proj", "query_proj")):
            continue  # called for relative positions too, as often as there are batches
        rows = [row for states in seen[name] for row in states.flatten(0, -2).numpy()]
        expected = sum(np.outer(row, row) for row in rows)
        np.testing.assert_allclose(found[layer].numpy(), expected, rtol=2e-5, atol=1e-5, err_msg=name)
