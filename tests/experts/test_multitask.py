"""Joint training: each row's loss is its own task's, and a killed run goes on where it was."""

from __future__ import annotations

import pytest
import torch
from experts.word_task import word_task
from torch.nn import functional

from twin_merging.backbones.features import Head
from twin_merging.config import FullFineTuning
from twin_merging.evaluation.metrics import metrics
from twin_merging.experts import multitask
from twin_merging.experts.multitask import JointModel, train_jointly

OPTIONS = FullFineTuning(epochs=3, lr=1e-2, batch_size=8, backbone_dropout=0.1)


TASKS = [word_task("two", 2, 0), word_task("number", 0, 1), word_task("four", 4, 2)]


def test_the_loss_is_the_mean_of_each_rows_own(backbone):
    models = [backbone.new_expert(each) for each in TASKS]
    encoder = backbone.encoder(models[0])
    for model in models:
        setattr(model, model.base_model_prefix, encoder)  # whole classifiers on the same encoder
    texts = [("a movie",), ("the plot is very bad",), ("good",), ("not a short text",), ("bad movie",)]
    rows = backbone.tokenizer.pad(backbone.tokenize(texts).rows, return_tensors="pt")
    owners, labels = torch.tensor([2, 0, 1, 2, 0]), torch.tensor([3.0, 1.0, 0.25, 0.0, 0.0])
    losses, logits = [], []
    for row, (owner, label) in enumerate(zip(owners, labels, strict=True)):
        with torch.no_grad():
            alone = {key: values[row : row + 1] for key, values in rows.items()}
            given = models[owner](**alone).logits
        logits.append(given[0])
        if TASKS[owner].kind == "regression":
            losses.append(float((given[0, 0] - label) ** 2))
        else:
            losses.append(float(functional.cross_entropy(given, label.long().view(1))))
    heads, regressions = [Head(model) for model in models], [each.kind == "regression" for each in TASKS]
    joint = JointModel(encoder, heads, regressions, backbone.embedded).eval()
    found = joint(**rows, task=owners, labels=labels)
    assert found.loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    for row, expected in enumerate(logits):
        torch.testing.assert_close(found.logits[row, : len(expected)], expected, rtol=1e-4, atol=1e-5)
        assert (found.logits[row, len(expected) :] == -torch.inf).all()
    found.loss.backward()
    assert all(head.model.classifier.weight.grad is not None for head in joint.heads)
    assert encoder.pooler.dense.weight.grad.abs().max() > 0


def test_heads_and_encoder_answer_as_the_epoch_that_was_chosen(backbone, tmp_path):
    encoder, heads, choice = train_jointly(backbone, TASKS, OPTIONS, 0, tmp_path)
    assert choice["split"] == "validation"
    assert choice["rows"] == 36
    assert list(choice["scores"]) == ["1", "2", "3"]
    scores = []
    for each in TASKS:
        features = backbone.encode(
            backbone.encoder_with(encoder), backbone.tokenize(each.splits["validation"].texts), 5, "test"
        )
        logits = backbone.head(heads[each.name], each.num_labels)(features)
        answers = logits.argmax(-1).tolist() if each.class_names else logits.flatten().tolist()
        scores.append(metrics[each.metric](answers, each.splits["validation"].labels))
    assert sum(scores) / 3 == pytest.approx(max(choice["scores"].values()), abs=1e-5)


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(backbone, tmp_path, monkeypatch):
    whole = train_jointly(backbone, TASKS, OPTIONS, 0, tmp_path / "whole")

    class Killed(Exception):
        pass

    calls = []

    def accuracy(answers, labels):
        calls.append(None)
        if len(calls) > 2:  # two tasks have it, so that this is in the second epoch
            raise Killed
        return metrics["accuracy"](answers, labels)

    with monkeypatch.context() as patched:
        patched.setattr(multitask, "metrics", {**metrics, "accuracy": accuracy})
        with pytest.raises(Killed):
            train_jointly(backbone, TASKS, OPTIONS, 0, tmp_path / "killed")
    assert list((tmp_path / "killed").glob("checkpoint-*/complete"))
    encoder, heads, choice = train_jointly(backbone, TASKS, OPTIONS, 0, tmp_path / "killed")
    assert choice == whole[2]
    for name, tensor in whole[0].items():
        torch.testing.assert_close(encoder[name], tensor, rtol=0, atol=1e-6)
    for name, state in whole[1].items():
        for key, tensor in state.items():
            torch.testing.assert_close(heads[name][key], tensor, rtol=0, atol=1e-6)


def test_the_test_split_chooses_nothing(backbone, tmp_path):
    leaky = word_task("two", 2, 3)
    leaky.splits["validation"] = leaky.splits["test"]
    with pytest.raises(Exception, match="nothing may be selected on test rows"):
        train_jointly(backbone, [leaky], FullFineTuning(epochs=1), 0, tmp_path)
