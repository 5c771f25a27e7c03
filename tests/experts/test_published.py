"""Published experts: where each comes from, and whose class each output of its head is."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

from twin_merging.compose import plan
from twin_merging.config import Experts
from twin_merging.errors import UserError
from twin_merging.experts.published import class_outputs, reorder_outputs, source_of, split_revision
from twin_merging.tasks.base import Task

NLI = Task("mnli", "single_label", ("entailment", "neutral", "contradiction"), None, "accuracy", {}, {})
STSB = Task("stsb", "regression", (), (0.0, 5.0), "pearson", {}, {})


def outputs(names: list[str], given: list[str] | None = None) -> dict:
    config = {"id2label": {str(index): name for index, name in enumerate(names)}}
    return class_outputs(config, NLI, given, "somewhere")


def test_a_source_of_its_own_goes_before_the_pattern():
    experts = Experts(source="x/{task}", sources={"rte": "me/rte-{task}@v1"})
    assert source_of(experts, "cola") == "x/cola"
    assert source_of(experts, "rte") == "me/rte-rte@v1"
    assert source_of(Experts(sources={"rte": "y"}), "cola") is None


def test_a_revision_is_of_hub_names_alone(tmp_path):
    assert split_revision("me/model@v1") == ("me/model", "v1")
    assert split_revision("me/model") == ("me/model", None)
    folder = tmp_path / "run@home"
    folder.mkdir()
    assert split_revision(str(folder)) == (str(folder), None)


def test_names_in_another_order_are_mapped():
    found = outputs(["Neutral", "CONTRADICTION", "entailment"])  # an order that is not its own inverse
    assert found == {"order": [2, 0, 1], "by": "name", "found": ["Neutral", "CONTRADICTION", "entailment"]}


@pytest.mark.parametrize("names", [["LABEL_0", "LABEL_1", "LABEL_2"], ["0", "1", "2"], []])
def test_what_names_nothing_keeps_its_place_unless_it_is_said(names: list[str]):
    assert outputs(names)["order"] == [0, 1, 2]
    assert outputs(names)["by"] == "place"
    said = outputs(names, ["neutral", "entailment", "contradiction"])
    assert (said["order"], said["by"]) == ([1, 0, 2], "experts.labels")


@pytest.mark.parametrize(
    ("names", "given", "key"),
    [
        (["positive", "negative", "neutral"], None, "somewhere"),
        (["LABEL_0", "LABEL_1", "LABEL_2"], ["entailment", "neutral", "neutral"], "experts.labels.mnli"),
    ],
)
def test_other_classes_are_refused(names: list[str], given: list[str] | None, key: str):
    with pytest.raises(UserError, match="classes are not those of the task") as caught:
        outputs(names, given)
    assert caught.value.key == key
    assert "experts.labels" in caught.value.hint


def test_a_regression_has_one_output():
    assert class_outputs({"id2label": {"0": "LABEL_0"}}, STSB, None, "x")["order"] == [0]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_reordered_outputs_are_the_old_ones_in_the_new_order(kind: str):
    small = {
        "vocab_size": 30, "hidden_size": 3, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 6,
        "num_labels": 3, "max_position_embeddings": 20,
    }  # fmt: skip
    torch.manual_seed(0)
    model = {
        "bert": lambda: BertForSequenceClassification(BertConfig(**small)),
        "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**small)),  # whose dense layer is 3 wide too
    }[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    ids = torch.tensor([[2, 5, 7, 3], [2, 9, 8, 3]])
    before = model(input_ids=ids).logits
    reorder_outputs(model, [2, 0, 1])
    after = model(input_ids=ids).logits
    torch.testing.assert_close(after, before[:, [2, 0, 1]])
    assert not torch.allclose(after, before)


def test_the_published_experts_of_the_vision_suite_are_chosen_at_once():
    run, *_ = plan(["+exp=vision_clip_published", "experts.normalize_by=published"], multirun=False).jobs
    assert len(run.tasks.names) == 8
    found = {name: source_of(run.experts, name) for name in run.tasks.names}
    assert found["stanford_cars"] == "tanganke/clip-vit-base-patch32_stanford-cars"
    assert found["dtd"] == "tanganke/clip-vit-base-patch32_dtd"
    assert set(run.experts.reference) == set(found)
    assert sum(run.experts.reference.values()) / 8 == pytest.approx(90.34, abs=0.01)
