"""Models in, a model out: what ``merge.py`` writes is loaded by from_pretrained and answers as the merge of the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from merge_models import CLASSES, change, save, state, task_arithmetic
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    LlamaForCausalLM,
    RobertaForMaskedLM,
)

from twin_merging.standalone.cli import main

IDS = torch.tensor([[5, 9, 3, 44, 21], [1, 2, 3, 4, 5]])


def merged(tmp_path: Path, *arguments: str, out: str = "out") -> Path:
    assert main([*arguments, f"out={tmp_path / out}"]) == 0
    return tmp_path / out


def inputs(tmp_path: Path, kind: str, number: int = 2, **settings) -> list[str]:
    """The arguments that name a base and its experts, freshly drawn."""
    save(tmp_path / "base", kind, 0, **settings)
    for seed in range(1, number + 1):
        save(tmp_path / f"e{seed}", kind, seed, **settings)
    experts = ",".join(str(tmp_path / f"e{seed}") for seed in range(1, number + 1))
    return [f"base={tmp_path / 'base'}", f"experts=[{experts}]"]


def expected_state(tmp_path: Path, scaling: float, number: int = 2) -> dict[str, torch.Tensor]:
    return task_arithmetic(
        state(tmp_path / "base"), [state(tmp_path / f"e{seed}") for seed in range(1, number + 1)], scaling
    )


@pytest.mark.parametrize(
    ("kind", "loader", "shards"),
    [
        ("bert", AutoModelForSequenceClassification, "5GB"), ("bert", AutoModelForSequenceClassification, "6KB"),
        ("llama", AutoModelForCausalLM, "5GB"), ("llama", AutoModelForCausalLM, "4KB"),
        ("llama_untied", AutoModelForCausalLM, "5GB"),
    ],
)  # fmt: skip
@torch.inference_mode()
def test_the_result_loads_and_answers_as_the_merge_of_the_weights(tmp_path, kind, loader, shards):
    arguments = inputs(tmp_path, kind, shards=shards)
    out = merged(tmp_path, *arguments, "merge_method.scaling=0.4", f"max_shard_size={shards}")
    found = loader.from_pretrained(out).eval()
    reference = CLASSES[kind]().eval()
    reference.load_state_dict(expected_state(tmp_path, 0.4), strict=False)
    reference.tie_weights()
    torch.testing.assert_close(found(input_ids=IDS).logits, reference(input_ids=IDS).logits, rtol=1e-4, atol=1e-5)
    base = loader.from_pretrained(tmp_path / "base").eval()(input_ids=IDS).logits
    assert not torch.allclose(found(input_ids=IDS).logits, base, atol=1e-2)
    if shards != "5GB":
        assert len(list(out.glob("model-*-of-*.safetensors"))) > 1


def test_every_number_is_the_references(tmp_path):
    arguments = inputs(tmp_path, "bert", number=3)
    out = merged(tmp_path, *arguments, "merge_method.scaling=0.3")
    for name, tensor in expected_state(tmp_path, 0.3, 3).items():
        torch.testing.assert_close(state(out)[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["base", "float32", "float16"])
def test_the_dtype_is_the_bases_or_as_asked(tmp_path, dtype):
    save(tmp_path / "base", "bert", 0, torch.bfloat16)
    save(tmp_path / "e1", "bert", 1, torch.float32)
    save(tmp_path / "e2", "bert", 2, torch.float16)
    arguments = [f"base={tmp_path / 'base'}", f"experts=[{tmp_path / 'e1'},{tmp_path / 'e2'}]"]
    out = merged(tmp_path, *arguments, f"dtype={dtype}", "merge_method.scaling=0.5")
    wanted = torch.bfloat16 if dtype == "base" else getattr(torch, dtype)
    base, experts = state(tmp_path / "base"), [state(tmp_path / "e1"), state(tmp_path / "e2")]
    for name, tensor in state(out).items():
        assert tensor.dtype == wanted
        exact = base[name].double() + 0.5 * sum(expert[name].double() - base[name].double() for expert in experts)
        torch.testing.assert_close(tensor, exact.to(wanted), rtol=torch.finfo(wanted).eps, atol=1e-6)
    assert BertForSequenceClassification.from_pretrained(out, dtype="auto").dtype == wanted


def test_excluded_parameters_are_the_bases(tmp_path):
    arguments = inputs(tmp_path, "bert")
    out = merged(tmp_path, *arguments, "parameters.exclude=['.*bias','classifier.*']")
    for name, tensor in state(tmp_path / "base").items():
        kept = name.endswith("bias") or name.startswith("classifier")
        assert torch.equal(state(out)[name], tensor) == kept, name
    assert "The base's own, unmerged" in (out / "README.md").read_text()


def test_integer_buffers_are_the_bases(tmp_path):
    arguments = inputs(tmp_path, "bert")
    change(tmp_path / "base", lambda tensors: tensors.update({"bert.embeddings.position_ids": torch.arange(40)}))
    change(tmp_path / "e1", lambda tensors: tensors.update({"bert.embeddings.position_ids": torch.zeros(3).long()}))
    out = merged(tmp_path, *arguments)
    assert torch.equal(state(out)["bert.embeddings.position_ids"], torch.arange(40))


def test_configuration_and_tokenizer_are_the_bases(tmp_path):
    arguments = inputs(tmp_path, "llama")
    files = {
        "tokenizer.json": "{}",
        "tokenizer_config.json": "{}",
        "vocab.txt": "a\nb",
        "spiece.model": "x",
        "chat_template.jinja": "y",
    }
    for name, content in files.items():
        (tmp_path / "base" / name).write_text(content)
    for name in ("pytorch_model.bin", "files.json", "manifest.json", "expert.json"):
        (tmp_path / "base" / name).write_text("never copied")
    out = merged(tmp_path, *arguments)
    assert {path.name for path in out.iterdir()} == {
        *files, "config.json", "generation_config.json", "model.safetensors", "README.md"
    }  # fmt: skip
    for name, content in files.items():
        assert (out / name).read_text() == content
    assert not (tmp_path / "out.unfinished").exists()


def test_the_card_says_how_it_was_made(tmp_path):
    arguments = inputs(tmp_path, "bert")
    out = merged(tmp_path, *arguments, "merge_method.scaling=0.25")
    _, front, text = (out / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": ["base", "e1", "e2"], "library_name": "transformers", "tags": ["merge", "twin_merging"]
    }  # fmt: skip
    options = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert options["merge_method"] == {"name": "task_arithmetic", "scaling": 0.25, "grid": None, "gamma": None}
    assert str((tmp_path / "e2/model.safetensors").stat().st_size) in text
    assert str(tmp_path) not in text  # a card may be published, and folders are one's own


# --- models saved from other classes ----------------------------------------------------------------------------------


def two(tmp_path: Path, base: str, experts: str) -> list[str]:
    save(tmp_path / "base", base, 0)
    save(tmp_path / "e1", experts, 1)
    save(tmp_path / "e2", experts, 2)
    return [f"base={tmp_path / 'base'}", f"experts=[{tmp_path / 'e1'},{tmp_path / 'e2'}]", "merge_method.scaling=0.5"]


def test_a_bare_encoder_takes_its_part_of_classifiers(tmp_path, caplog):
    arguments = two(tmp_path, "roberta", "roberta_classifier")
    change(tmp_path / "base", lambda tensors: [tensors.pop(name) for name in list(tensors) if "pooler" in name])
    out = merged(tmp_path, *arguments)
    base = state(tmp_path / "base")
    experts = [{name: state(tmp_path / each)[f"roberta.{name}"] for name in base} for each in ("e1", "e2")]
    for name, tensor in task_arithmetic(base, experts, 0.5).items():
        torch.testing.assert_close(state(out)[name], tensor, rtol=1e-5, atol=1e-6)
    said = "Left out of experts[0], since the base has no place for them: `classifier.dense"
    assert said in (out / "README.md").read_text()
    assert any(said in message for message in caplog.messages)
    AutoModel.from_pretrained(out)


def test_a_language_model_takes_bare_encoders_once_its_head_is_excluded(tmp_path, capsys):
    arguments = two(tmp_path, "roberta_lm", "roberta")
    for expert in ("e1", "e2"):
        change(tmp_path / expert, lambda tensors: [tensors.pop(name) for name in list(tensors) if "pooler" in name])
    assert main([*arguments, f"out={tmp_path / 'out'}"]) == 2
    message = capsys.readouterr().err
    assert "experts[0]: lm_head" in message
    assert "parameters.exclude=['lm_head.*']" in message
    out = merged(tmp_path, *arguments, "parameters.exclude=['lm_head.*']")
    base, first, second = (state(tmp_path / name) for name in ("base", "e1", "e2"))
    name = "encoder.layer.0.attention.self.query.weight"
    expected = base[f"roberta.{name}"] + 0.5 * (first[name] + second[name] - 2 * base[f"roberta.{name}"])
    torch.testing.assert_close(state(out)[f"roberta.{name}"], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(state(out)["lm_head.dense.weight"], base["lm_head.dense.weight"])
    RobertaForMaskedLM.from_pretrained(out)


def test_tensors_inside_the_encoder_are_not_left_out_silently(tmp_path, capsys):
    arguments = two(tmp_path, "roberta_classifier", "roberta_classifier")
    change(tmp_path / "e2", lambda tensors: tensors.update({"roberta.encoder.layer.7.weight": torch.ones(2)}))
    assert main([*arguments, f"out={tmp_path / 'out'}"]) == 2
    assert "experts[1]: roberta.encoder.layer.7.weight" in capsys.readouterr().err
    out = merged(tmp_path, *arguments, "parameters.exclude=['roberta.encoder.layer.7.*']")
    assert set(state(out)) == set(state(tmp_path / "base"))


# --- tied embeddings --------------------------------------------------------------------------------------------------


def test_an_expert_that_ties_meets_a_base_that_stores_both(tmp_path):
    arguments = two(tmp_path, "llama_untied", "llama")
    out = merged(tmp_path, *arguments)
    base, first, second = (state(tmp_path / name) for name in ("base", "e1", "e2"))
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    assert head not in first
    expected = base[head] + 0.5 * (first[embedding] + second[embedding] - 2 * base[head])
    torch.testing.assert_close(state(out)[head], expected, rtol=1e-5, atol=1e-6)


def test_an_expert_that_stores_a_tied_tensor_twice_is_one_that_ties(tmp_path):
    arguments = inputs(tmp_path, "llama")
    plain = merged(tmp_path, *arguments, out="plain")
    change(
        tmp_path / "e1",
        lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}),
    )
    out = merged(tmp_path, *arguments)
    assert state(out).keys() == state(plain).keys()
    assert all(torch.equal(state(out)[name], tensor) for name, tensor in state(plain).items())
    assert LlamaForCausalLM.from_pretrained(out).lm_head.weight.shape == (60, 12)


def test_an_output_embedding_of_its_own_is_not_lost_silently(tmp_path, capsys):
    arguments = two(tmp_path, "llama", "llama_untied")
    assert main([*arguments, f"out={tmp_path / 'out'}"]) == 2
    assert "experts[0]: lm_head.weight" in capsys.readouterr().err


# --- vocabularies -----------------------------------------------------------------------------------------------------


def with_vocabulary(folder: Path, tokens: list[str]) -> None:
    """Cut or extend the embedding to these tokens, deterministically."""

    def resize(tensors: dict) -> None:
        name = "model.embed_tokens.weight"
        rows = torch.cat([tensors[name], torch.full((100, tensors[name].shape[1]), 7.0)])
        tensors[name] = rows[: len(tokens)].clone()

    change(folder, resize)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": len(tokens)}))
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))


@pytest.mark.parametrize("sizes", [(60, 63), (60, 55)])
def test_vocabularies_of_other_sizes(tmp_path, capsys, sizes):
    arguments = inputs(tmp_path, "llama")
    tokens = [f"t{number}" for number in range(100)]
    with_vocabulary(tmp_path / "base", tokens[: sizes[0]])
    with_vocabulary(tmp_path / "e1", tokens[: sizes[1]])
    with_vocabulary(tmp_path / "e2", tokens[: sizes[0]])
    assert main([*arguments, f"out={tmp_path / 'out'}"]) == 2
    message = capsys.readouterr().err
    assert f"{sizes[1]} tokens" in message
    assert f"{sizes[0]} tokens" in message
    assert "vocabulary=base" in message
    out = merged(tmp_path, *arguments, "vocabulary=base", "merge_method.scaling=0.5")
    name = "model.embed_tokens.weight"
    base, first, second = (state(tmp_path / each)[name] for each in ("base", "e1", "e2"))
    same = min(sizes)
    expected = base + 0.5 * (second - base)
    expected[:same] += 0.5 * (first[:same] - base[:same])
    torch.testing.assert_close(state(out)[name], expected, rtol=1e-5, atol=1e-6)
    assert LlamaForCausalLM.from_pretrained(out).config.vocab_size == sizes[0]


def test_vocabularies_that_disagree_on_a_token_are_refused(tmp_path, capsys):
    arguments = inputs(tmp_path, "llama")
    tokens = [f"t{number}" for number in range(60)]
    with_vocabulary(tmp_path / "base", tokens)
    with_vocabulary(tmp_path / "e1", [*tokens[:9], "other", *tokens[10:58]])
    assert main([*arguments, "vocabulary=base", f"out={tmp_path / 'out'}"]) == 2
    message = capsys.readouterr().err
    assert "9 is 'other'" in message
    assert "'t9' as in the base" in message
    (tmp_path / "e1/vocab.json").unlink()
    assert main([*arguments, "vocabulary=base", f"out={tmp_path / 'out'}"]) == 2
    assert "without tokenizers" in capsys.readouterr().err
