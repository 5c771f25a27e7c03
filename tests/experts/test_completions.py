"""Language models learn completions: the loss, the choice of the epoch, adapters as they are saved, and killed runs."""

from __future__ import annotations

import json
import random
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from backbones.tiny_language import backbone_of, save_language
from oracles.language import nats_a_token
from peft import PeftModel
from safetensors.torch import load_file

from twin_merging import assets
from twin_merging.backbones.causal_lm import CausalLMBackbone
from twin_merging.checkpoints import Checkpoint
from twin_merging.config import CausalFineTuning, CausalLora
from twin_merging.errors import UserError
from twin_merging.experts import completions, fine_tuning
from twin_merging.experts.completions import causal_fine_tuning, causal_lora, labelled, padded, train_completions
from twin_merging.tasks.generation import Example, Request

LETTERS = "abcdefgh"
TARGETS = r".*\.(q_proj|v_proj|up_proj)"
LORA = CausalLora(epochs=3, lr=2e-2, batch_size=8, micro_batch=4, rank=4, alpha=8, targets=TARGETS, dropout=0.1)
FULL = CausalFineTuning(epochs=2, lr=3e-3, batch_size=8, micro_batch=8)


def examples(count: int, seed: int) -> list[Example]:
    """The last letter asks for the one after it, twice."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        asked = chance.choice(LETTERS)
        after = LETTERS[(LETTERS.index(asked) + 1) % len(LETTERS)]
        found.append(
            Example("".join(chance.choices(LETTERS, k=chance.randint(1, 9))) + f" {asked}:", f" {after}{after}")
        )
    return found


TRAIN, HELD_OUT = examples(46, 0), examples(13, 1)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> CausalLMBackbone:
    return backbone_of(save_language(tmp_path_factory.mktemp("llama")))


def loss_of(model, backbone: CausalLMBackbone, rows: list[Example]) -> float:
    return nats_a_token(deepcopy(model), backbone.tokenizer, [(row.prompt, row.completion) for row in rows])


def test_only_completions_have_labels(backbone):
    (row,) = labelled(backbone, [Example("ab", "cde")], 20)
    ids = backbone.tokenizer("abcde")["input_ids"]
    assert row == {"input_ids": [*ids, 0], "labels": [-100, -100, *ids[2:], 0]}
    rows = [row, *labelled(backbone, [Example("a", "")], 20)]
    batch = padded(rows, trimmed=False)
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0]]
    assert batch["labels"][1].tolist() == [-100, 0, -100, -100, -100, -100]  # the end is learnt, padding by it is not
    batch = padded(rows)
    assert batch["attention_mask"].tolist() == [[1] * 6, [0, 0, 0, 0, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 1]]
    assert batch["labels"].tolist() == [[-100, *ids[2:], 0], [-100, -100, -100, -100, 0]]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("trimmed", [True, False])
def test_the_loss_is_of_the_labels_alone(tmp_path, kind, trimmed):
    own = backbone_of(save_language(tmp_path / kind, kind))
    model, rows = own.load(), labelled(own, [*TRAIN[:5], Example("abcdefgh", ""), Example("", "ab")], 64)
    batch = padded(rows, trimmed)
    with torch.no_grad():
        found = model(**batch)
    assert found.loss.item() == pytest.approx(
        loss_of(model, own, [*TRAIN[:5], Example("abcdefgh", ""), Example("", "ab")]), rel=1e-5
    )
    assert found.logits.shape[1] == (batch["logits_to_keep"] if trimmed else batch["input_ids"].shape[1])
    each = completions.losses(found.logits, batch["labels"])
    assert each[:, 1].tolist() == [sum(label >= 0 for label in row["labels"]) for row in rows]
    assert float(each[:, 0].sum() / each[:, 1].sum()) == pytest.approx(found.loss.item(), rel=1e-5)


def test_a_long_row_loses_the_beginning_of_its_prompt(backbone, caplog):
    ids = backbone.tokenizer("abcdefgh")["input_ids"]
    (row,) = labelled(backbone, [Example("abcdef", "gh")], 6)
    assert row == {"input_ids": [*ids[3:], 0], "labels": [-100, -100, -100, *ids[6:], 0]}
    assert "1 of 1 prompts are cut to finetune.max_length=6" in caplog.text
    (row,) = labelled(backbone, [Example("ab", "cdefgh")], 4)
    assert row["input_ids"] == row["labels"] == ids[2:6]


def test_the_score_is_of_all_tokens_alike_and_the_best_epoch_is_kept(backbone, tmp_path):
    model = backbone.load(training=True)
    history, _ = train_completions(backbone, model, "next", TRAIN, HELD_OUT, FULL, 0, tmp_path)
    choice = history["choice"]
    assert (choice["split"], choice["rows"], choice["what"]) == ("validation", 13, "epoch of next")
    assert list(choice["scores"]) == ["1", "2"]
    assert loss_of(model, backbone, HELD_OUT) == pytest.approx(-max(choice["scores"].values()), abs=1e-5)
    assert choice["scores"][str(choice["chosen"])] == max(choice["scores"].values())
    tokens = sum(len(row.prompt) + len(row.completion) + 1 for row in TRAIN)  # a byte is a token here
    assert history["train_tokens"] == 2 * tokens
    assert model.config.use_cache
    assert model.config._attn_implementation == backbone.load().config._attn_implementation != "eager"


def test_an_epoch_that_is_worse_on_validation_rows_is_not_kept(backbone, tmp_path):
    other = [Example(row.prompt, "zyzyzyzy") for row in HELD_OUT]  # the more is learnt, the less of this
    model = backbone.load(training=True)
    options = CausalFineTuning(epochs=4, lr=1e-2, batch_size=8, scheduler="constant_with_warmup")
    choice = train_completions(backbone, model, "next", TRAIN, other, options, 0, tmp_path)[0]["choice"]
    assert choice["chosen"] < 4
    assert choice["scores"]["4"] < max(choice["scores"].values()) - 0.1
    assert loss_of(model, backbone, other) == pytest.approx(-max(choice["scores"].values()), rel=1e-4)


def test_micro_batches_add_up_to_the_batch(backbone, tmp_path):
    """Also where rows have different numbers of labels, and with fewer activations kept."""
    rows = [Example(row.prompt, row.completion * (1 + number % 3)) for number, row in enumerate(TRAIN)]
    found = []
    for micro, checkpointing in ((8, False), (2, False), (2, True)):
        options = CausalFineTuning(epochs=1, lr=1e-3, batch_size=8, micro_batch=micro, checkpointing=checkpointing)
        model = backbone.load(training=True)
        train_completions(backbone, model, "next", rows, HELD_OUT, options, 0, tmp_path / f"{micro}{checkpointing}")
        found.append(model.state_dict())
    start = backbone.load().state_dict()
    for name, tensor in found[0].items():
        assert (tensor - start[name]).abs().max() > 1e-3
        for other in found[1:]:
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=2e-5)


def test_rows_of_like_length_may_share_a_step(backbone, tmp_path, monkeypatch):
    """Each epoch has every row once, in steps that pad less, and another order the next time."""
    rows = [Example(row.prompt * (2 + number % 5), row.completion) for number, row in enumerate(TRAIN)]
    mine, read = {tuple(row["input_ids"]) for row in labelled(backbone, rows, 1024)}, []

    def noted(batch, **given):
        read.append([tuple(row["input_ids"]) for row in batch])
        return padded(batch, **given)

    monkeypatch.setattr(completions, "padded", noted)
    padding, orders = {}, {}
    for grouped in (False, True):
        options = replace(FULL, epochs=2, micro_batch=2, group_by_length=grouped)
        read.clear()
        train_completions(
            backbone, backbone.load(training=True), "next", rows, HELD_OUT, options, 0, tmp_path / str(grouped)
        )
        own = [batch for batch in read if batch[0] in mine]
        padding[grouped] = sum(max(map(len, batch)) - len(row) for batch in own for row in batch)
        flat = [row for batch in own for row in batch]
        orders[grouped] = flat[: len(rows)], flat[len(rows) :]
        for epoch in orders[grouped]:
            assert sorted(epoch) == sorted(tuple(row["input_ids"]) for row in labelled(backbone, rows, 1024))
    assert padding[True] < 0.5 * padding[False]
    assert orders[True][0] != orders[True][1]


def test_an_expert_is_its_adapter(backbone, tmp_path):
    folder = tmp_path / "expert"
    causal_lora(backbone, "next", TRAIN, HELD_OUT, LORA, 0, folder, tmp_path / "scratch")
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "expert.json",
    }
    tensors = load_file(folder / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 3  # A and B of three layers in each of two blocks
    assert {min(tensor.shape) for tensor in tensors.values()} == {4}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8, backbone.options.pretrained)
    expert = json.loads((folder / "expert.json").read_text())
    assert expert["task"] == "next"
    loaded = PeftModel.from_pretrained(backbone.load(), folder)
    best = -max(expert["choice"]["scores"].values())
    assert loss_of(loaded, backbone, HELD_OUT) == pytest.approx(best, abs=1e-5)
    assert best < 0.7 * loss_of(backbone.load(), backbone, HELD_OUT)
    requests = [Request(row.prompt, 4) for row in HELD_OUT]
    answers = backbone.complete(loaded, requests, 4, "test")
    assert answers == backbone.complete(loaded.merge_and_unload(), requests, 4, "test")


def test_it_learns_what_the_rows_ask_for(backbone, tmp_path):
    options = CausalLora(epochs=10, lr=1e-2, batch_size=8, rank=8, alpha=16, dropout=0, checkpointing=True)
    causal_lora(backbone, "next", examples(240, 3), HELD_OUT, options, 0, tmp_path / "expert", tmp_path / "scratch")
    model = PeftModel.from_pretrained(backbone.load(), tmp_path / "expert")
    requests, wanted = [Request(row.prompt, 8) for row in HELD_OUT], [row.completion for row in HELD_OUT]
    right = sum(given == row for given, row in zip(backbone.complete(model, requests, 4, "test"), wanted, strict=True))
    assert right >= 11  # of 13, with the end in its place
    assert not set(backbone.complete(backbone.load(), requests, 4, "test")) & set(wanted)


def test_all_parameters_are_an_ordinary_folder(backbone, tmp_path):
    causal_fine_tuning(backbone, "next", TRAIN, HELD_OUT, FULL, 0, tmp_path / "expert", tmp_path / "scratch")
    expert = backbone_of(tmp_path / "expert")
    best = -max(json.loads((tmp_path / "expert/expert.json").read_text())["choice"]["scores"].values())
    assert loss_of(expert.load(), expert, HELD_OUT) == pytest.approx(best, abs=1e-5)
    start = Checkpoint(backbone.folder)
    learnt = Checkpoint(tmp_path / "expert")
    assert set(learnt) == set(start)
    assert all((learnt[name] - start[name]).abs().max() > 1e-4 for name in start)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_rounding_once_what_rests_changes_nothing_of_what_is_learned(backbone, tmp_path, monkeypatch, kind):
    """Under autocast, with evaluations in between."""
    lower = CausalLMBackbone(backbone.options, backbone.folder, torch.device("cpu"), True)
    found = []
    for place, products in (("ours", fine_tuning.faster_products), ("plain", lambda *_, **__: nullcontext())):
        monkeypatch.setattr(fine_tuning, "faster_products", products)
        if kind == "lora":
            causal_lora(lower, "next", TRAIN, HELD_OUT, LORA, 0, tmp_path / place, tmp_path / f"{place}.part")
        else:
            causal_fine_tuning(lower, "next", TRAIN, HELD_OUT, FULL, 0, tmp_path / place, tmp_path / f"{place}.part")
        (file,) = (tmp_path / place).glob("*.safetensors")
        found.append(load_file(file))
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


@pytest.mark.parametrize("kind", ["lora", "full", "grouped"])
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(backbone, tmp_path, monkeypatch, kind):
    def run(name: str) -> dict[str, torch.Tensor]:
        if kind != "full":
            options = replace(LORA, group_by_length=kind == "grouped")
            causal_lora(backbone, "next", TRAIN, HELD_OUT, options, 0, tmp_path / name, tmp_path / f"{name}.part")
        else:
            causal_fine_tuning(backbone, "next", TRAIN, HELD_OUT, FULL, 0, tmp_path / name, tmp_path / f"{name}.part")
        return {
            key: tensor for file in (tmp_path / name).glob("*.safetensors") for key, tensor in load_file(file).items()
        }

    whole = run("whole")

    class Killed(Exception):
        pass

    calls, score = [], completions._score

    def dies(prediction):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return score(prediction)

    with monkeypatch.context() as patched:
        patched.setattr(completions, "_score", dies)
        with pytest.raises(Killed):
            run("killed")
    assert list((tmp_path / "killed.part").glob("checkpoint-*/complete"))
    assert not (tmp_path / "killed").exists()
    steps: list[int] = []
    monkeypatch.setattr(completions, "padded", lambda rows, **given: steps.append(len(rows)) or padded(rows, **given))
    for name, tensor in run("killed").items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=1e-6)
    epochs = FULL.epochs if kind == "full" else LORA.epochs
    assert sum(steps) <= (epochs - 1) * (len(TRAIN) + len(HELD_OUT)) + 20  # the first epoch is not run again
    texts = [(tmp_path / name / "expert.json").read_text() for name in ("whole", "killed")]
    assert texts[0] == texts[1]


def test_another_seed_is_another_adapter(backbone, tmp_path):
    for seed in (0, 1):
        causal_lora(backbone, "next", TRAIN, HELD_OUT, LORA, seed, tmp_path / str(seed), tmp_path / f"{seed}.part")
    found = [load_file(tmp_path / str(seed) / "adapter_model.safetensors") for seed in (0, 1)]
    assert all(not torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_mistakes_name_their_key(backbone, tmp_path):
    with pytest.raises(UserError) as raised:
        train_completions(
            backbone, None, "next", TRAIN, HELD_OUT, CausalFineTuning(batch_size=8, micro_batch=3), 0, tmp_path
        )
    assert (raised.value.key, raised.value.found) == ("finetune.micro_batch", 3)
    with pytest.raises(UserError) as raised:
        causal_lora(
            backbone, "next", TRAIN, HELD_OUT, CausalLora(targets=r".*\.c_attn"), 0, tmp_path / "a", tmp_path / "b"
        )
    assert raised.value.key == "finetune.targets"
    assert raised.value.found == r".*\.c_attn"


def test_the_defaults_are_the_papers():
    options = CausalLora()
    assert (options.rank, options.alpha, options.dropout) == (32, 16, 0.05)
    assert (options.lr, options.batch_size, options.epochs) == (2e-4, 128, 3)


def test_quantizing_without_its_package_says_what_to_install(backbone, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="bitsandbytes") as raised:
        causal_lora(backbone, "next", TRAIN, HELD_OUT, CausalLora(quantize="nf4"), 0, tmp_path / "a", tmp_path / "b")
    assert raised.value.key == "finetune.quantize"


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes, which is not installed")
def test_adapters_of_a_quantized_model_learn(need_asset, tmp_path):
    backbone = backbone_of(assets.model_folder("smollm2", need_asset("smollm2")))
    options = CausalLora(epochs=2, lr=2e-3, batch_size=8, rank=4, alpha=8, quantize="nf4", checkpointing=True)
    causal_lora(backbone, "next", TRAIN[:24], HELD_OUT[:6], options, 0, tmp_path / "expert", tmp_path / "scratch")
    tensors: dict[str, torch.Tensor] = load_file(tmp_path / "expert/adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * 30
    assert all(tensor.abs().max() > 0 for tensor in tensors.values())
    model = PeftModel.from_pretrained(backbone.load(), tmp_path / "expert")  # on the whole weights
    assert loss_of(model, backbone, HELD_OUT[:6]) < 0.5 * loss_of(backbone.load(), backbone, HELD_OUT[:6])
