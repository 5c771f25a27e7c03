"""LoRA adapters of real models: merged as products ΔW, into an adapter that PEFT loads or into a full model."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from merge_models import CLASSES, save, state, task_arithmetic
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from twin_merging.config import merge_methods
from twin_merging.standalone.cli import main

IDS = torch.tensor([[5, 9, 3, 44, 21], [1, 2, 3, 4, 5]])
LOADERS = {"llama": AutoModelForCausalLM, "bert": AutoModelForSequenceClassification, "gpt2": AutoModelForCausalLM}
CLASSES["gpt2"] = lambda: GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=12, n_layer=2, n_head=2, n_positions=40))


def adapter(folder: Path, base: Path, kind: str, seed: int, **settings) -> Path:
    """A LoRA whose factors are both drawn by ``seed``."""
    torch.manual_seed(seed)
    model = get_peft_model(LOADERS[kind].from_pretrained(base), LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (
                "lora_" in name
                or "modules_to_save" in name
                or ("bias" in name and settings.get("bias", "none") != "none")
            ):
                parameter.copy_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def arguments(tmp_path: Path, kind: str, first: dict, second: dict) -> list[str]:
    save(tmp_path / "base", kind, 0)
    adapter(tmp_path / "a1", tmp_path / "base", kind, 1, **first)
    adapter(tmp_path / "a2", tmp_path / "base", kind, 2, **second)
    return [f"base={tmp_path / 'base'}", f"experts=[{tmp_path / 'a1'},{tmp_path / 'a2'}]"]


def unloaded(tmp_path: Path, kind: str, name: str) -> torch.nn.Module:
    """The expert as PEFT itself merges it into the base."""
    return PeftModel.from_pretrained(
        LOADERS[kind].from_pretrained(tmp_path / "base"), tmp_path / name
    ).merge_and_unload()


@torch.inference_mode()
def reference_logits(tmp_path: Path, kind: str, scaling: float) -> torch.Tensor:
    model = LOADERS[kind].from_pretrained(tmp_path / "base")
    experts = [unloaded(tmp_path, kind, name).state_dict() for name in ("a1", "a2")]
    model.load_state_dict(task_arithmetic(model.state_dict(), experts, scaling))
    return model.eval()(input_ids=IDS).logits


@torch.inference_mode()
def logits_with(tmp_path: Path, kind: str, out: Path) -> torch.Tensor:
    base = LOADERS[kind].from_pretrained(tmp_path / "base")
    return PeftModel.from_pretrained(base, out).eval()(input_ids=IDS).logits


QV = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
CASES = {
    "the same modules": ("llama", QV, QV),
    "other modules and ranks": ("llama", QV, {**QV, "r": 2, "target_modules": ["v_proj", "down_proj"]}),
    "rank-stabilized": ("llama", {**QV, "use_rslora": True}, QV),
    "patterns": (
        "llama", {**QV, "rank_pattern": {"v_proj": 5}, "alpha_pattern": {"layers.1.self_attn.v_proj": 9}}, QV,
    ),
    "embeddings": ("llama_untied", {**QV, "target_modules": ["embed_tokens", "q_proj"]}, QV),
    "an encoder": ("bert", {"r": 2, "lora_alpha": 3, "target_modules": ["query", "dense"]},
                   {"r": 4, "lora_alpha": 3, "target_modules": ["query"]}),
    "transposed matrices": ("gpt2", {"r": 2, "lora_alpha": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True},
                            {"r": 3, "lora_alpha": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
}  # fmt: skip
LOADERS["llama_untied"] = AutoModelForCausalLM


@pytest.mark.parametrize("case", CASES)
def test_the_adapter_and_the_model_answer_as_the_merged_experts(tmp_path, case):
    kind, first, second = CASES[case]
    given = arguments(tmp_path, kind, first, second)
    expected = reference_logits(tmp_path, kind, 0.7)
    assert main([*given, "merge_method.scaling=0.7", f"out={tmp_path / 'adapter'}"]) == 0
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md"
    }  # fmt: skip
    torch.testing.assert_close(logits_with(tmp_path, kind, tmp_path / "adapter"), expected, rtol=1e-4, atol=1e-5)
    assert main([*given, "merge_method.scaling=0.7", "output=model", f"out={tmp_path / 'model'}"]) == 0
    with torch.inference_mode():
        found = LOADERS[kind].from_pretrained(tmp_path / "model").eval()(input_ids=IDS).logits
        base = LOADERS[kind].from_pretrained(tmp_path / "base").eval()(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, base, atol=1e-2)


def test_the_factors_apart_would_be_another_result(tmp_path):
    """PEFT's ``linear`` combination averages A and B, whose product is not the average product."""
    given = arguments(tmp_path, "llama", QV, QV)
    assert main([*given, "merge_method=weight_averaging", f"out={tmp_path / 'out'}"]) == 0
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "a1", "one")
    model.load_adapter(tmp_path / "a2", "two")
    model.add_weighted_adapter(["one", "two"], [0.5, 0.5], "cat", combination_type="cat")
    model.set_adapter("cat")
    with torch.inference_mode():
        stacked = model.eval()(input_ids=IDS).logits
    torch.testing.assert_close(logits_with(tmp_path, "llama", tmp_path / "out"), stacked, rtol=1e-4, atol=1e-5)
    model.add_weighted_adapter(["one", "two"], [0.5, 0.5], "linear", combination_type="linear")
    model.set_adapter("linear")
    with torch.inference_mode():
        assert not torch.allclose(stacked, model.eval()(input_ids=IDS).logits, atol=1e-2)


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    """ΔW of an adapter of ours, whose scale is 1."""
    tensors = load_file(folder / "adapter_model.safetensors")
    return {
        name.replace("lora_A", "W"): tensors[name.replace("lora_A", "lora_B")].double() @ A.double()
        for name, A in tensors.items()
        if "lora_A" in name
    }


@pytest.mark.parametrize("rank", [1, 2, 4, 50])
def test_a_rank_gives_the_best_approximation_of_that_rank(tmp_path, rank):
    given = arguments(tmp_path, "llama", QV, {**QV, "r": 4})
    assert main([*given, f"out={tmp_path / 'exact'}"]) == 0
    assert main([*given, f"adapter_rank={rank}", f"out={tmp_path / 'cut'}"]) == 0
    exact, cut = deltas(tmp_path / "exact"), deltas(tmp_path / "cut")
    assert exact.keys() == cut.keys()
    for name, whole in exact.items():
        U, S, Vt = torch.linalg.svd(whole, full_matrices=False)
        best = (U[:, :rank] * S[:rank]) @ Vt[:rank]
        torch.testing.assert_close(cut[name], best, rtol=1e-4, atol=1e-5)
    logits_with(tmp_path, "llama", tmp_path / "cut")


def test_methods_that_are_not_linear_merge_the_products_into_a_model(tmp_path, monkeypatch):
    given = arguments(tmp_path, "llama", QV, {**QV, "target_modules": ["v_proj", "down_proj"]})
    plugin = tmp_path / "largest_entry.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from twin_merging.config import merge_methods\n"
        "from twin_merging.merging.method import static\n"
        "@dataclass\nclass LargestEntry:\n    name: str = 'largest_entry'\n"
        "@merge_methods.register('largest_entry', options=LargestEntry)\n"
        "@static(elementwise=True)\n"
        "def largest_entry(base, deltas, options):\n"
        "    assert base.dim() == 1 and deltas.dim() == 2\n"
        "    return base.add_(deltas.max(0).values)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(merge_methods, "_components", dict(merge_methods._components))  # forgotten afterwards
    assert main([*given, "plugins=[largest_entry]", "merge_method=largest_entry", f"out={tmp_path / 'out'}"]) == 0
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict()
    experts = [unloaded(tmp_path, "llama", name).state_dict() for name in ("a1", "a2")]
    for name, tensor in state(tmp_path / "out").items():
        expected = base[name] + torch.stack([expert[name] - base[name] for expert in experts]).max(0).values
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5)


def test_a_full_model_and_an_adapter_merge_into_a_model(tmp_path):
    given = arguments(tmp_path, "llama", QV, QV)
    save(tmp_path / "full", "llama", 5)
    given[1] = f"experts=[{tmp_path / 'a1'},{tmp_path / 'full'}]"
    assert main([*given, "merge_method=weight_averaging", f"out={tmp_path / 'out'}"]) == 0
    first, full = unloaded(tmp_path, "llama", "a1").state_dict(), state(tmp_path / "full")
    for name, tensor in state(tmp_path / "out").items():
        torch.testing.assert_close(tensor, (first[name] + full[name]) / 2, rtol=1e-4, atol=1e-5)


def test_experts_with_weights_of_their_own_merge_into_a_model(tmp_path):
    given = arguments(tmp_path, "llama", QV, QV)
    assert main([*given, "merge_method.scaling=0.5", "merge_method.gamma=[1,-0.5]", f"out={tmp_path / 'out'}"]) == 0
    base, first, second = (
        state(tmp_path / "base"), *(unloaded(tmp_path, "llama", name).state_dict() for name in ("a1", "a2"))
    )  # fmt: skip
    for name, tensor in state(tmp_path / "out").items():
        expected = base[name] + 0.5 * (first[name] - base[name]) - 0.25 * (second[name] - base[name])
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5)


def test_whole_modules_and_biases_of_an_adapter_merge_into_a_model(tmp_path, capsys):
    saved = {
        "r": 2,
        "lora_alpha": 3,
        "target_modules": ["query"],
        "modules_to_save": ["classifier"],
        "bias": "lora_only",
    }
    given = arguments(tmp_path, "bert", saved, saved)
    assert main([*given, "merge_method.scaling=0.5", f"out={tmp_path / 'out'}"]) == 0
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base").state_dict()
    experts = [unloaded(tmp_path, "bert", name).state_dict() for name in ("a1", "a2")]
    for name, expected in task_arithmetic(base, experts, 0.5).items():
        torch.testing.assert_close(state(tmp_path / "out")[name], expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(state(tmp_path / "out")["classifier.weight"], base["classifier.weight"])
    assert main([*given, "output=adapter", f"out={tmp_path / 'no'}"]) == 2
    assert "has whole tensors such as bert.encoder.layer.0.attention.self.query.bias" in capsys.readouterr().err


def test_a_method_that_is_not_linear_gives_no_adapter(tmp_path, capsys):
    given = arguments(tmp_path, "llama", QV, QV)
    assert main([*given, "merge_method=pretrained", "adapter_rank=2", f"out={tmp_path / 'out'}"]) == 2
    message = capsys.readouterr().err
    assert "adapter_rank: the result is no adapter, since pretrained makes no product of low rank" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_dora": True}, "use_dora"), ({"peft_type": "IA3"}, "peft_type"), ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"target_parameters": ["x"]}, "target_parameters"),
    ],
)  # fmt: skip
def test_other_adapters_are_refused(tmp_path, capsys, changes, named):
    given = arguments(tmp_path, "llama", QV, QV)
    path = tmp_path / "a2/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert main([*given, f"out={tmp_path / 'out'}"]) == 2
    message = capsys.readouterr().err
    assert f"experts[1]: adapter_config.json: {named}" in message
    assert not (tmp_path / "out").exists()


def test_a_dora_that_peft_saved_is_refused(tmp_path, capsys):
    given = arguments(tmp_path, "llama", QV, {**QV, "use_dora": True})
    assert main([*given, f"out={tmp_path / 'out'}"]) == 2
    assert "use_dora" in capsys.readouterr().err


def test_an_adapter_of_another_model_is_refused(tmp_path, capsys):
    given = arguments(tmp_path, "llama", QV, QV)
    save(tmp_path / "other", "bert", 0)
    assert main([f"base={tmp_path / 'other'}", given[1], f"out={tmp_path / 'out'}"]) == 2
    assert "this adapter does not fit the base" in capsys.readouterr().err


def test_factors_of_another_size_are_refused(tmp_path, capsys):
    given = arguments(tmp_path, "llama", QV, QV)
    path = tmp_path / "a1/adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_A" in name)
    save_file({**tensors, name: torch.ones(3, 5)}, path)
    assert main([*given, f"out={tmp_path / 'out'}"]) == 2
    assert "a tensor of the wrong shape" in capsys.readouterr().err


def test_nan_in_a_factor_is_named(tmp_path, capsys):
    given = arguments(tmp_path, "llama", QV, QV)
    path = tmp_path / "a2/adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "v_proj.lora_B" in name)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, path)
    for output in ("adapter", "model"):
        assert main([*given, f"output={output}", f"out={tmp_path / 'out'}"]) == 2
        message = capsys.readouterr().err
        assert "experts[1]: model.layers.0.self_attn.v_proj.weight" in message
        assert "NaN" in message
        assert not (tmp_path / "out").exists()


def test_the_names_are_those_that_peft_itself_writes(tmp_path):
    given = arguments(tmp_path, "llama", QV, QV)
    assert main([*given, f"out={tmp_path / 'out'}"]) == 0
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "out")
    model.save_pretrained(tmp_path / "again")
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "again"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert peft.PeftConfig.from_pretrained(tmp_path / "out").base_model_name_or_path == str(tmp_path / "base")


def test_a_card_names_peft(tmp_path):
    given = arguments(tmp_path, "llama", QV, QV)
    assert main([*given, f"out={tmp_path / 'out'}"]) == 0
    text = (tmp_path / "out/README.md").read_text()
    assert "library_name: peft" in text
    assert "folder, LoRA adapter" in text


def test_a_base_of_another_class_than_the_adapters(tmp_path):
    """The adapter was trained on a classifier, the base is its encoder saved alone."""
    save(tmp_path / "classifier", "bert", 0)
    for seed in (1, 2):
        settings = {"r": 2, "lora_alpha": 3, "target_modules": ["query"]}
        adapter(tmp_path / f"a{seed}", tmp_path / "classifier", "bert", seed, **settings)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    model.bert.save_pretrained(tmp_path / "base")
    given = [f"base={tmp_path / 'base'}", f"experts=[{tmp_path / 'a1'},{tmp_path / 'a2'}]", "output=model"]
    assert main([*given, "merge_method=weight_averaging", f"out={tmp_path / 'out'}"]) == 0
    experts = [
        PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier"), tmp_path / name)
        .merge_and_unload().state_dict() for name in ("a1", "a2")
    ]  # fmt: skip
    for name, tensor in state(tmp_path / "out").items():
        expected = sum(expert[f"bert.{name}"] for expert in experts) / 2
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5)


def test_what_no_adapter_changes_stays_the_bases_and_a_method_never_sees_it(tmp_path, monkeypatch):
    """In bfloat16 a mean of three equal numbers would be rounded; and an embedding may be a third of a model."""
    seen: list[str] = []
    load = merge_methods["weight_averaging"].load()

    def watched(base, experts, options, at):
        seen.append(at.name)
        return load(base, experts, options)

    watched.kind = load.kind
    monkeypatch.setattr(type(merge_methods["weight_averaging"]), "load", lambda component: watched)
    save(tmp_path / "base", "llama", 0)
    experts = [adapter(tmp_path / f"a{seed}", tmp_path / "base", "llama", seed, **QV) for seed in (1, 2, 3)]
    given = f"experts=[{','.join(map(str, experts))}]"
    assert (
        main(
            [
                f"base={tmp_path / 'base'}",
                given,
                "merge_method=weight_averaging",
                "dtype=bfloat16",
                f"out={tmp_path / 'out'}",
                "output=model",
            ]
        )
        == 0
    )
    merged, base = state(tmp_path / "out"), state(tmp_path / "base")
    changed = {name for name in base if name.endswith(("q_proj.weight", "v_proj.weight"))}
    assert set(seen) == changed
    for name, tensor in merged.items():
        assert torch.equal(tensor, base[name].bfloat16()) == (name not in changed)
