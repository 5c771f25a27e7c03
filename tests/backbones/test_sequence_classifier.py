from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import WORDS, save_model
from transformers import AutoConfig

from twin_merging.backbones.blocks import blocks_of
from twin_merging.backbones.sequence_classifier import SequenceClassifierBackbone
from twin_merging.config import SequenceClassifier
from twin_merging.errors import UserError
from twin_merging.tasks.base import Split, Task

KINDS = ["bert", "roberta", "electra", "distilbert", "deberta"]
WEIGHTS = "model.safetensors"


def backbone_of(folder: Path, max_length: int = 32) -> SequenceClassifierBackbone:
    options = SequenceClassifier(pretrained=str(folder), max_length=max_length)
    return SequenceClassifierBackbone(options, folder, torch.device("cpu"), autocast=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A saved classifier of each architecture."""
    return {kind: save_model(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def some_texts(count: int = 11) -> list[tuple[str, ...]]:
    """Texts of very different lengths."""
    generator = random.Random(0)
    return [(" ".join(generator.choices(WORDS, k=generator.randint(1, 20))),) for _ in range(count)]


def damaged(folder: Path, tmp_path: Path, change) -> Path:
    """A copy of ``folder`` whose tensors ``change`` has changed."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(copy / WEIGHTS)
    change(tensors)
    save_file(tensors, copy / WEIGHTS, {"format": "pt"})
    return copy


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_on_replayed_features_answers_as_the_full_model(folders, kind):
    backbone = backbone_of(folders[kind])
    model = backbone.load(folders[kind], num_labels=3)
    tokens = backbone.tokenize(some_texts())
    features = backbone.encode(backbone.encoder(model), tokens, 4, "test")
    answers = backbone.head(backbone.head_state(model), 3)(features)
    model.eval()
    for row, ids in enumerate(tokens.rows):
        with torch.no_grad():
            logits = model(**{name: torch.tensor([values]) for name, values in ids.items()}).logits[0]
        torch.testing.assert_close(answers[row], logits, rtol=0, atol=1e-5)
    assert answers.std(0).max() > 1e-3  # else any head would do


@pytest.mark.parametrize("kind", KINDS)
def test_these_architectures_are_accepted(folders, kind):
    backbone = backbone_of(folders[kind])
    backbone.check_head_reads_first_token(backbone.load(folders[kind], num_labels=3))


def test_a_head_that_reads_all_tokens_is_refused(tmp_path):
    folder = save_model(tmp_path / "modern", "modernbert")
    backbone = backbone_of(folder)
    with pytest.raises(UserError, match="read more than the first token") as caught:
        backbone.check_head_reads_first_token(backbone.load(folder, num_labels=3))
    assert caught.value.found == "ModernBertForSequenceClassification"


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_and_head_are_the_whole_model(folders, kind):
    backbone = backbone_of(folders[kind])
    model = backbone.load(folders[kind], num_labels=3)
    encoder = {f"{model.base_model_prefix}.{name}" for name in backbone.encoder(model).state_dict()}
    head = set(backbone.head_state(model))
    assert encoder | head == set(model.state_dict())
    assert not encoder & head
    assert any(name.startswith("classifier") for name in head)


@pytest.mark.parametrize("kind", ["bert", "deberta"])
def test_features_do_not_depend_on_the_batch_size(folders, kind):
    backbone = backbone_of(folders[kind])
    encoder = backbone.encoder(backbone.load(folders[kind], num_labels=3))
    tokens = backbone.tokenize(some_texts())
    one, some, all_at_once = (backbone.encode(encoder, tokens, size, "test") for size in (1, 3, 64))
    assert set(one) == {"first", "mean"} | ({"pooled"} if kind == "bert" else set())
    for name, value in one.items():
        assert value.shape == (11, 12)
        assert value.dtype == torch.float32
        torch.testing.assert_close(some[name], value, rtol=0, atol=1e-5)
        torch.testing.assert_close(all_at_once[name], value, rtol=0, atol=1e-5)


def test_mean_is_over_real_tokens(folders):
    backbone = backbone_of(folders["bert"])
    encoder = backbone.encoder(backbone.load(folders["bert"], num_labels=3))
    tokens = backbone.tokenize([("good",), ("a very very very long text that is not short",)])
    features = backbone.encode(encoder, tokens, 2, "test")
    for row, ids in enumerate(tokens.rows):
        with torch.no_grad():
            states = encoder(**{name: torch.tensor([values]) for name, values in ids.items()}).last_hidden_state[0]
        torch.testing.assert_close(features["mean"][row], states.mean(0), rtol=0, atol=1e-5)
        torch.testing.assert_close(features["first"][row], states[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1, 2, -1])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_router_reads_takes_no_block_from_its_layer_on(folders, kind, layer):
    backbone = backbone_of(folders[kind])
    encoder = backbone.encoder(backbone.load(folders[kind], num_labels=3))
    tokens, ran = backbone.tokenize(some_texts()), []
    whole = backbone.encode(encoder, tokens, 4, "test", layer=layer)
    for number, block in enumerate(blocks_of(encoder)):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    found = backbone.encode(encoder, tokens, 4, "test", layer=layer, for_router=True)
    assert found.keys() == {"mean"}
    assert torch.equal(found["mean"], whole["mean"])
    assert ran == 3 * list(range(2 if layer < 0 else layer))  # of 11 rows in three batches


def test_each_row_gets_its_own_weights_though_rows_are_batched_by_length(folders):
    class Recorder(torch.nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder, self.seen = encoder, {}

        def forward(self, weights, **inputs):
            for ids, mask, row in zip(inputs["input_ids"], inputs["attention_mask"], weights, strict=True):
                self.seen[tuple(ids[mask.bool()].tolist())] = row.tolist()
            return self.encoder(**inputs)

    backbone = backbone_of(folders["bert"])
    recorder = Recorder(backbone.encoder(backbone.load(folders["bert"], num_labels=3)))
    tokens = backbone.tokenize(some_texts())
    weights = torch.arange(22).float().view(11, 2)
    backbone.encode(recorder, tokens, 4, "test", weights)
    assert recorder.seen == {tuple(row["input_ids"]): weights[i].tolist() for i, row in enumerate(tokens.rows)}


def test_pairs_are_tokenized_as_pairs(folders):
    backbone = backbone_of(folders["bert"])
    (row,) = backbone.tokenize([("a good movie", "bad plot")]).rows
    assert backbone.tokenizer.convert_ids_to_tokens(row["input_ids"]) == [
        "[CLS]",
        "a",
        "good",
        "movie",
        "[SEP]",
        "bad",
        "plot",
        "[SEP]",
    ]
    assert row["token_type_ids"] == [0, 0, 0, 0, 0, 1, 1, 1]
    (single,) = backbone.tokenize([("a good movie",)]).rows
    assert single["token_type_ids"] == [0] * 5


def test_texts_are_cut_to_max_length(folders):
    backbone = backbone_of(folders["bert"], max_length=6)
    rows = backbone.tokenize([("very " * 30, "good " * 30), ("good", "bad")]).rows
    assert [len(row["input_ids"]) for row in rows] == [6, 5]
    assert rows[0]["input_ids"][-1] == backbone.tokenizer.sep_token_id


def test_a_new_head_fits_the_task_and_the_encoder_is_the_published_one(folders):
    split = Split([("a text",)], [0])
    splits = {"train": split, "validation": split, "test": split}
    topics = Task("topics", "single_label", tuple("abcdefg"), None, "accuracy", splits, {})
    stars = Task("stars", "regression", (), (1, 5), "pearson", splits, {})
    backbone = backbone_of(folders["roberta"])
    published = load_file(folders["roberta"] / WEIGHTS)
    for task, outputs, problem in ((topics, 7, "single_label_classification"), (stars, 1, "regression")):
        model = backbone.new_expert(task)
        assert model.classifier.out_proj.out_features == outputs
        assert model.config.problem_type == problem
        for name, tensor in backbone.encoder(model).state_dict().items():
            if f"roberta.{name}" in published:
                assert torch.equal(tensor, published[f"roberta.{name}"])


def test_a_head_that_the_folder_holds_is_not_taken_for_a_new_one(folders):
    backbone = backbone_of(folders["roberta"])
    published = backbone.load(folders["roberta"], AutoConfig.from_pretrained(folders["roberta"]).num_labels)
    torch.manual_seed(1)
    drawn = backbone.load(folders["roberta"], published.config.num_labels, new_head=True)
    for name, tensor in backbone.head_state(published).items():
        if name.endswith("weight"):
            assert not torch.equal(backbone.head_state(drawn)[name], tensor), name
    for name, tensor in backbone.encoder(published).state_dict().items():
        assert torch.equal(backbone.encoder(drawn).state_dict()[name], tensor), name


def test_a_missing_tensor_is_named(folders, tmp_path):
    name = "bert.encoder.layer.1.output.dense.weight"
    copy = damaged(folders["bert"], tmp_path, lambda tensors: tensors.pop(name))
    for new_head in (False, True):
        with pytest.raises(UserError, match="a tensor is missing") as caught:
            backbone_of(copy).load(copy, num_labels=3, new_head=new_head)
        assert caught.value.key == f"{copy}: {name}"


def test_a_missing_head_matters_only_where_it_is_wanted(folders, tmp_path):
    copy = damaged(folders["bert"], tmp_path, lambda tensors: tensors.pop("classifier.weight"))
    backbone = backbone_of(copy)
    with pytest.raises(UserError, match="a tensor is missing") as caught:
        backbone.load(copy, num_labels=3)
    assert caught.value.key == f"{copy}: classifier.weight"
    assert backbone.load(copy, num_labels=5, new_head=True).classifier.out_features == 5


def test_an_encoder_without_pooler_gets_the_same_one_every_time(folders, tmp_path):
    def drop(tensors):
        for name in [name for name in tensors if ".pooler." in name]:
            del tensors[name]

    copy = damaged(folders["bert"], tmp_path, drop)
    backbone = backbone_of(copy)
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        states.append(backbone.load(copy, num_labels=5, new_head=True).state_dict())
    encoder = [name for name in states[0] if name.startswith("bert.")]
    assert any(".pooler." in name for name in encoder)
    assert all(torch.equal(states[0][name], states[1][name]) for name in encoder)
    assert states[0]["bert.pooler.dense.weight"].std() > 0.01
    assert not torch.equal(states[0]["classifier.weight"], states[1]["classifier.weight"])  # heads follow the seed


def test_a_tensor_of_another_shape_is_refused(folders, tmp_path):
    name = "bert.encoder.layer.0.attention.self.query.weight"

    def shrink(tensors):
        tensors[name] = tensors[name][:6].contiguous()

    copy = damaged(folders["bert"], tmp_path, shrink)
    for new_head in (False, True):
        with pytest.raises(UserError, match="wrong shape") as caught:
            backbone_of(copy).load(copy, num_labels=3, new_head=new_head)
        assert caught.value.key == f"{copy}: {name}"
        assert (caught.value.found, caught.value.expected) == ([6, 12], [12, 12])


def test_a_head_of_another_size_is_refused(folders):
    with pytest.raises(UserError, match="wrong shape") as caught:
        backbone_of(folders["bert"]).load(folders["bert"], num_labels=4)
    assert caught.value.key == f"{folders['bert']}: classifier.bias"
    assert (caught.value.found, caught.value.expected) == ([3], [4])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_named(folders, tmp_path, value):
    name = "bert.embeddings.word_embeddings.weight"

    def spoil(tensors):
        tensors[name][3, 4] = value

    copy = damaged(folders["bert"], tmp_path, spoil)
    with pytest.raises(UserError, match="NaN or infinity") as caught:
        backbone_of(copy).load(copy, num_labels=3)
    assert caught.value.key == f"{copy}: {name}"
    assert caught.value.found.startswith("1 of ")


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_a_truncated_file_is_refused(folders, tmp_path, keep):
    copy = shutil.copytree(folders["bert"], tmp_path / "copy")
    content = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(content[:keep])
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        backbone_of(copy).load(copy, num_labels=3)
    assert caught.value.key == str(copy)


def test_pickled_weights_are_refused(folders, tmp_path):
    copy = shutil.copytree(folders["bert"], tmp_path / "copy")
    torch.save(load_file(copy / WEIGHTS), copy / "pytorch_model.bin")
    (copy / WEIGHTS).unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        backbone_of(copy).load(copy, num_labels=3)


def test_a_folder_without_tokenizer_is_refused(folders, tmp_path):
    copy = shutil.copytree(folders["bert"], tmp_path / "copy")
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="no tokenizer") as caught:
        backbone_of(copy).tokenize([("a text",)])
    assert caught.value.key == "backbone.pretrained"
