"""Batches answer as each prompt does alone, by each prompt's own rules."""

from __future__ import annotations

import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_language import END, backbone_of, reference, save_language, some_requests

from twin_merging import assets
from twin_merging.backbones import causal_lm
from twin_merging.backbones.decoding import Decoding, Row
from twin_merging.backbones.kv_cache import RoomyLayer
from twin_merging.backbones.loading import load_model
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.errors import UserError
from twin_merging.tasks.generation import Request

KINDS = ["llama", "tied", "gpt2"]
T = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved language model of each kind."""
    return {kind: save_language(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_answers_as_each_prompt_alone(folders, kind):
    backbone = backbone_of(folders[kind])
    model, requests = backbone.load(), some_requests()
    expected = [reference(model, backbone.tokenizer, request) for request in requests]
    for size in (1, 4, 16):
        assert backbone.complete(model, requests, size, "test") == expected
    assert len(set(expected)) > 8


def test_each_request_has_its_own_length_and_stops(folders):
    backbone = backbone_of(folders["llama"])
    model, chance = backbone.load(), random.Random(1)
    plain = some_requests(new=20)
    answers = [reference(model, backbone.tokenizer, request) for request in plain]
    requests = []
    for request, answer in zip(plain, answers, strict=True):
        place = chance.randrange(len(answer) - 1)
        stop = (answer[place : place + 2], "not there") if chance.random() < 0.6 else ()
        requests.append(Request(request.prompt, chance.randint(1, 20), stop))
    expected = [reference(model, backbone.tokenizer, request) for request in requests]
    assert backbone.complete(model, requests, 8, "test") == expected
    assert "" in expected or min(map(len, expected)) < 3 < max(map(len, expected))


def test_rows_that_are_done_leave_the_batch(folders):
    backbone = backbone_of(folders["llama"])
    model, sizes = backbone.load(), []
    requests = [Request(f"prompt {number}", 2) for number in range(6)] + [Request("a", 9), Request("b", 9)]
    model.register_forward_pre_hook(lambda _, args, given: sizes.append(len(given["input_ids"])), with_kwargs=True)
    backbone.complete(model, requests, 8, "test")
    assert sizes == [8, 8, 2, 2, 2, 2, 2, 2, 2]


def test_a_batch_ends_with_its_last_stop(folders):
    backbone = backbone_of(folders["llama"])
    model, steps = backbone.load(), []
    prompts = [request.prompt for request in some_requests(4)]
    first = backbone.complete(model, [Request(text, 1) for text in prompts], 4, "test")
    model.register_forward_pre_hook(lambda *_: steps.append(1))
    requests = [Request(text, 40, (stop,)) for text, stop in zip(prompts, first, strict=True)]
    assert backbone.complete(model, requests, 4, "test") == [""] * 4
    assert len(steps) == 1


def test_an_answer_that_ends_at_once_is_empty(folders, tmp_path):
    copy = shutil.copytree(folders["llama"], tmp_path / "silent")
    backbone = backbone_of(copy)
    model = backbone.load()
    model.lm_head = torch.nn.Linear(32, model.config.vocab_size)
    torch.nn.init.constant_(model.lm_head.bias, -1e4)
    model.lm_head.bias.data[backbone.tokenizer.convert_tokens_to_ids(END)] = 1e4
    assert backbone.complete(model, some_requests(5), 4, "test") == [""] * 5
    assert backbone.complete(model, [], 4, "test") == []


def test_without_ends_an_answer_is_as_long_as_it_may_be(folders):
    backbone = backbone_of(folders["llama"])
    model, steps = backbone.load(), []
    model.lm_head = torch.nn.Linear(32, model.config.vocab_size)
    torch.nn.init.constant_(model.lm_head.bias, -1e4)
    model.lm_head.bias.data[backbone.tokenizer.convert_tokens_to_ids(END)] = 1e4
    model.register_forward_pre_hook(lambda *_: steps.append(1))
    backbone.complete(model, some_requests(5, 12), 5, "test")
    assert len(steps) == 1
    backbone.complete(model, some_requests(5, 12), 5, "test", ends=())
    assert len(steps) == 1 + 12


def test_a_prompt_without_text_begins_a_text(folders):
    backbone = backbone_of(folders["llama"])
    model = backbone.load()
    ids = torch.tensor([[0]])
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert backbone.complete(model, [Request("", 5), Request("other", 5)], 2, "test")[0] == backbone.tokenizer.decode(
        found[0, 1:]
    )


def test_sampling_depends_on_prompt_and_seed_alone(folders):
    backbone = backbone_of(folders["llama"])
    model = backbone.load()
    warm = [Request(request.prompt, 12, temperature=2.0) for request in some_requests()]
    together = backbone.complete(model, warm, 8, "test")
    assert together == [backbone.complete(model, [request], 1, "test")[0] for request in warm]
    assert together[::-1] == backbone.complete(model, warm[::-1], 3, "test")
    assert together != backbone.complete(model, warm, 8, "test", seed=1)
    assert together != backbone.complete(model, some_requests(), 8, "test")


def test_tokens_are_drawn_by_their_probability(folders):
    backbone = backbone_of(folders["llama"])
    model, rows = backbone.load(), 3000
    ids = backbone.tokenizer("a", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        shares = torch.softmax(model(ids).logits[0, -1] / 1.5, 0)
    counts: dict[str, int] = {}
    for seed in range(rows):
        row = Row(Request("a", 1, temperature=1.5), backbone.tokenizer, set(), seed)
        token = row.draw(torch.log(shares) * 1.5)
        counts[token] = counts.get(token, 0) + 1
    top = int(shares.argmax())
    expected = float(shares[top])
    assert abs(counts[top] / rows - expected) < 4 * (expected * (1 - expected) / rows) ** 0.5


def test_the_models_own_sampling_settings_do_not_hold(folders):
    backbone = backbone_of(folders["llama"])
    model, requests = backbone.load(), some_requests()
    expected = backbone.complete(model, requests, 8, "test")
    model.generation_config.update(do_sample=True, temperature=3.0, repetition_penalty=5.0, num_beams=3, top_k=2)
    assert backbone.complete(model, requests, 8, "test") == expected


def test_a_prompt_longer_than_the_context_is_refused_before_anything_is_answered(folders):
    backbone = backbone_of(folders["llama"])
    model, ran = backbone.load(), []
    model.register_forward_pre_hook(lambda *_: ran.append(1))
    assert backbone.context == 96
    with pytest.raises(UserError) as raised:
        backbone.complete(model, [Request("a", 5), Request("long" * 22, 9)], 4, "test")
    assert raised.value.key == "backbone.context"
    assert "88 tokens and up to 9" in str(raised.value)
    assert "prompt 1 is too long" in str(raised.value)
    assert not ran
    assert len(backbone.complete(model, [Request("long" * 22, 8)], 4, "test")) == 1
    assert backbone_of(folders["llama"], context=50).context == 50


@pytest.mark.parametrize("damage", ["missing", "shape", "infinite", "cut", "tokenizer"])
def test_a_damaged_folder_is_one_clear_error(folders, tmp_path, damage):
    copy = shutil.copytree(folders["llama"], tmp_path / "copy")
    file, name = copy / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(file)
    if damage == "missing":
        del tensors[name]
    elif damage == "shape":
        tensors[name] = tensors[name][:-1].contiguous()
    elif damage == "infinite":
        tensors[name][0, 0] = float("inf")
    save_file(tensors, file, {"format": "pt"})
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    if damage == "tokenizer":
        (copy / "tokenizer.json").unlink()
    read = (lambda: backbone_of(copy).tokenizer) if damage == "tokenizer" else backbone_of(copy).load
    with pytest.raises(UserError) as raised:
        read()
    assert str(copy) in str(raised.value)
    assert damage in ("cut", "tokenizer") or name in str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
def test_what_prompts_begin_with_is_read_once(folders, kind):
    backbone = backbone_of(folders[kind])
    model, read = backbone.load(), []
    examples = [
        "one two three, four five six; seven eight, nine. ",
        "seven eight nine. ten eleven! one two, three four. ",
    ]
    requests = [Request(examples[row % 2] + each.prompt, 4) for row, each in enumerate(some_requests(12))]
    expected = [reference(model, backbone.tokenizer, request) for request in requests]
    model.register_forward_pre_hook(lambda _, args, given: read.append(given["input_ids"].numel()), with_kwargs=True)
    assert backbone.complete(model, requests, 3, "test") == expected
    shared = sum(read)
    read.clear()
    assert [backbone.complete(model, [request], 1, "test")[0] for request in requests] == expected
    assert shared < 0.7 * sum(read)


def test_rows_with_weights_of_their_own_read_their_own_beginning(folders):
    backbone = backbone_of(folders["llama"])
    generator = torch.Generator().manual_seed(3)
    deltas = {
        name: 0.3 * torch.randn(T, *tensor.shape, generator=generator)
        for name, tensor in backbone.load().named_parameters()
    }
    twin = TwinMergedModel(backbone.load(), deltas)
    requests = [Request("the same beginning of all of these prompts, " + each.prompt, 8) for each in some_requests(6)]
    for weights in (torch.eye(T).repeat(2, 1), torch.eye(T)[:1].repeat(6, 1)):
        merged = [backbone.model_with(twin.merge_for(row)) for row in weights]
        expected = [
            reference(model, backbone.tokenizer, request) for model, request in zip(merged, requests, strict=True)
        ]
        assert backbone.complete(twin, requests, 6, "test", weights) == expected


def test_dtype_is_chosen(folders):
    for dtype, expected in {"auto": torch.float32, "bfloat16": torch.bfloat16, "float32": torch.float32}.items():
        assert backbone_of(folders["llama"], dtype=dtype).load().dtype == expected


def test_a_device_map_places_a_model_that_answers_and_none_that_learns(folders, monkeypatch):
    backbone, given = backbone_of(folders["llama"], device_map="auto"), []

    def recorded(*arguments, **settings):
        given.append(settings.get("device_map"))
        return load_model(*arguments, **settings)

    monkeypatch.setattr(causal_lm, "load_model", recorded)
    requests, models = some_requests(4), (backbone.load(), backbone.load(training=True))
    assert given == ["auto", None]
    spread, whole = (backbone.complete(model, requests, 4, "test") for model in models)
    assert spread == whole


@pytest.fixture(scope="module")
def smollm2(need_asset):
    folder = assets.model_folder("smollm2", need_asset("smollm2"))
    return backbone_of(folder)


def test_a_real_model_answers_batches_of_mixed_tasks_as_each_prompt_alone(smollm2):
    prompts = {
        "The capital of France is": ("\n", "."), "Question: What is 2+3?\nAnswer:": ("\n",), "List three colours:\n": ("\n\n",),
        "Once upon a time, in a small village by the sea, there lived": (), "The opposite of hot is": (".",),
    }  # fmt: skip
    requests = [Request(text, 6 if stop else 14, stop) for text, stop in prompts.items()]
    model = smollm2.load()
    together = smollm2.complete(model, requests, 5, "test")
    assert together == [smollm2.complete(model, [request], 1, "test")[0] for request in requests]
    assert together[0] == " Paris"
    assert together[1] == " 5"
    assert together[4] == " cold"


def test_states_do_not_depend_on_what_is_read_beside(folders):
    backbone = backbone_of(folders["llama"])
    model, requests = backbone.load(), [Request("abc" * count, 1) for count in (1, 12, 2, 3, 1, 5)]
    states = backbone.states(model, requests, 4, "test")
    for request, row in zip(requests, states, strict=True):
        (alone,) = backbone.states(model, [request], 1, "test")
        torch.testing.assert_close(row, alone, rtol=0, atol=1e-5)


def test_what_was_read_is_copied_seldom(folders, monkeypatch):
    """Whether or not beginnings are shared and rows leave: all layers have room."""
    kinds, own = [], Decoding.__call__

    def seen(decoding, model, input_ids, **given):
        ids = own(decoding, model, input_ids, **given)
        kinds.extend(type(layer) for layer in given["past_key_values"].layers)
        return ids

    monkeypatch.setattr(Decoding, "__call__", seen)
    backbone = backbone_of(folders["llama"])
    backbone.complete(backbone.load(), some_requests(), 4, "test")
    assert set(kinds) == {RoomyLayer}
