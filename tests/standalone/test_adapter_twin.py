"""Twins of LoRA adapters: their knowledge comes from the factors, and equals that of the dense matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from merge_models import save
from oracles.dynamic import multiplied_out
from peft import PeftModel
from test_adapters import adapter
from transformers import AutoModelForSequenceClassification, BertConfig

from twin_merging.checkpoints import Checkpoint
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.errors import UserError
from twin_merging.sparsifiers.stored import read_back
from twin_merging.standalone import twin
from twin_merging.standalone.adapters import Adapter, Pair
from twin_merging.standalone.cli import main
from twin_merging.standalone.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS

IDS = torch.tensor([[5, 9, 3, 44, 21], [1, 2, 3, 4, 5], [7, 7, 1, 0, 2], [8, 1, 9, 33, 4]])
SETTINGS: list[dict] = [
    {"r": 2, "lora_alpha": 3, "target_modules": ["query", "dense"]},
    {"r": 4, "lora_alpha": 3, "target_modules": ["query", "word_embeddings"], "use_rslora": True},
    {"r": 1, "lora_alpha": 2, "target_modules": ["query", "value"]},
]  # other ranks, matrices that only some of them touch, and an embedding, whose factors are transposed


@pytest.fixture
def given(tmp_path) -> list[str]:
    save(tmp_path / "base", "bert", 0)
    for number, settings in enumerate(SETTINGS):
        adapter(tmp_path / f"a{number}", tmp_path / "base", "bert", number + 1, **settings)
    return arguments(tmp_path)


def arguments(tmp_path: Path) -> list[str]:
    experts = ",".join(str(tmp_path / f"a{number}") for number in range(len(SETTINGS)))
    return [f"base={tmp_path / 'base'}", f"experts=[{experts}]", "merge_method=twin"]


def knowledge(folder: Path) -> dict[str, torch.Tensor]:
    """v_t of all experts by name, multiplied out."""
    kept = read_back(Checkpoint(folder / "exclusive.safetensors"))
    return {name: multiplied_out(delta) for name, delta in kept.items()}


def refuse(*arguments, **more):
    raise AssertionError("a dense matrix was asked for")


@pytest.fixture
def no_dense_matrix(monkeypatch):
    """From when the shared expert is written, every dense matrix of an adapter is refused."""

    def refusing_after(name: str):
        write = getattr(twin, name)

        def then_refuse(*arguments):
            files = write(*arguments)
            monkeypatch.setattr(Adapter, "__getitem__", refuse)
            monkeypatch.setattr(Pair, "product", refuse)
            return files

        monkeypatch.setattr(twin, name, then_refuse)

    refusing_after("write_model")
    refusing_after("write_adapter")


AVERAGING = "merge_method@merge_method.shared=weight_averaging"
PRETRAINED = "merge_method@merge_method.shared=pretrained"


@pytest.mark.parametrize(
    "more",
    [
        ["sparsifier.rank=3"], ["merge_method.shared.scaling=0.7"], [AVERAGING, "sparsifier.rank=1"], [PRETRAINED],
        ["sparsifier.fraction=0.3"], ["sparsifier.rank=3", "parameters.exclude=[.*query.*]"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("output", ["auto", "model"])
def test_the_factors_give_what_the_dense_matrices_give(tmp_path, given, monkeypatch, more, output):
    more = [*more, f"output={output}"]
    assert main([*given, *more, f"out={tmp_path / 'factored'}"]) == 0
    monkeypatch.setattr(twin, "factored_knowledge", lambda *_: None)
    assert main([*given, *more, f"out={tmp_path / 'dense'}"]) == 0
    found, expected = knowledge(tmp_path / "factored"), knowledge(tmp_path / "dense")
    excluded = "query" in more[-2]
    assert {name.split(".")[-2] for name in found} == {"word_embeddings", "dense", "value"} | {"query"} - {
        "query" if excluded else ""
    }
    for name, whole in expected.items():
        torch.testing.assert_close(found.get(name, torch.zeros_like(whole)), whole, rtol=0, atol=1e-5)
        assert name not in found or whole.abs().max() > 0.01
    weights = "model" if output == "model" or PRETRAINED in more else "adapter_model"
    shared = [(tmp_path / folder / f"shared/{weights}.safetensors").read_bytes() for folder in ("factored", "dense")]
    assert shared[0] == shared[1]


def test_knowledge_is_the_best_of_its_rank_of_what_peft_unloads(tmp_path, given):
    assert main([*given, "merge_method.shared.scaling=0.4", "sparsifier.rank=2", f"out={tmp_path / 'out'}"]) == 0
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base").state_dict()
    deltas = [
        {
            name: tensor.double() - base[name].double()
            for name, tensor in unloaded(tmp_path, number).state_dict().items()
        }
        for number in range(len(SETTINGS))
    ]
    for name, found in knowledge(tmp_path / "out").items():
        for number, whole in enumerate(found):
            exclusive = deltas[number][name] - 0.4 * sum(delta[name] for delta in deltas)
            U, S, Vt = torch.linalg.svd(exclusive, full_matrices=False)
            torch.testing.assert_close(whole, (U[:, :2] * S[:2]) @ Vt[:2], rtol=0, atol=1e-5)


def unloaded(tmp_path: Path, number: int) -> torch.nn.Module:
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    return PeftModel.from_pretrained(base, tmp_path / f"a{number}").merge_and_unload()


@pytest.mark.parametrize("output", ["auto", "model"])
@torch.inference_mode()
def test_each_expert_comes_back_from_its_knowledge(tmp_path, given, output):
    """By default rank 16, which is whole here: θ_s + v_t = θ_t."""
    assert main([*given, AVERAGING, f"output={output}", f"out={tmp_path / 'out'}"]) == 0
    model = TwinMergedModel.from_pretrained(tmp_path / "out")
    for number in range(len(SETTINGS)):
        weights = torch.eye(len(SETTINGS))[number].expand(len(IDS), -1)
        expected = unloaded(tmp_path, number).eval()(input_ids=IDS).logits
        torch.testing.assert_close(model(input_ids=IDS, weights=weights).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("more", [["sparsifier.rank=3"], ["sparsifier.fraction=0.5", PRETRAINED], [AVERAGING]])
def test_no_dense_matrix_is_made(tmp_path, given, no_dense_matrix, more):
    assert main([*given, *more, f"out={tmp_path / 'out'}"]) == 0


def answers(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


@torch.inference_mode()
def test_the_shared_expert_is_an_adapter_that_peft_loads_and_a_twin_adds_to_its_base(tmp_path, given, capsys):
    for output in ("auto", "model"):
        assert main([*given, "sparsifier.rank=2", f"output={output}", f"out={tmp_path / output}"]) == 0
    assert {file.name for file in (tmp_path / "auto/shared").iterdir()} == {ADAPTER_CONFIG, ADAPTER_WEIGHTS}
    twins = [TwinMergedModel.from_pretrained(tmp_path / output) for output in ("auto", "model")]
    weights = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.2, 0.3, 0.5], [0, 0, 0]])
    found, expected = (twin(input_ids=IDS, weights=weights).logits for twin in twins)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (found - answers(twins[0])).abs()[:3].amax(1).min() > 1e-3
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    merged = PeftModel.from_pretrained(base, tmp_path / "auto/shared").merge_and_unload()
    torch.testing.assert_close(answers(twins[0]), answers(merged), rtol=1e-4, atol=1e-5)
    half = TwinMergedModel.from_pretrained(tmp_path / "auto", dtype=torch.bfloat16)
    assert half(input_ids=IDS, weights=weights).logits.dtype == torch.bfloat16
    for (name, rounded), whole in zip(half.state_dict().items(), twins[0].state_dict().values(), strict=True):
        assert rounded.dtype == torch.bfloat16 or not rounded.is_floating_point(), name
        assert torch.equal(rounded, whole.to(rounded.dtype)), name  # the sum is rounded once
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UserError) as caught:
        TwinMergedModel.from_pretrained(tmp_path / "auto")
    assert (caught.value.key, "base=" in caught.value.hint) == ("base", True)
    moved = TwinMergedModel.from_pretrained(tmp_path / "auto", base=str(tmp_path / "moved"))
    torch.testing.assert_close(moved(input_ids=IDS, weights=weights).logits, found)


def test_an_adapter_of_a_twin_fits_its_base_and_is_exact(tmp_path, given, capsys):
    assert main([*given, "adapter_rank=2", f"out={tmp_path / 'no'}"]) == 2
    assert "adapter_rank: a twin's shared expert is exact" in capsys.readouterr().err
    assert main([*given, "output=adapter", "merge_method@merge_method.shared=ties", f"out={tmp_path / 'no'}"]) == 2
    assert "output: the result is no adapter, since ties makes no product of low rank" in capsys.readouterr().err
    assert main([*given, f"out={tmp_path / 'out'}"]) == 0
    config = BertConfig.from_pretrained(tmp_path / "base", intermediate_size=24)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="does not fit this base"):
        TwinMergedModel.from_pretrained(tmp_path / "out", base=str(tmp_path / "other"))


@pytest.mark.parametrize(
    "more",
    [
        ["sparsifier=none"], ["sparsifier=magnitude"], ["sparsifier.energy=0.9"],
        ["merge_method@merge_method.shared=ties"],
    ],
)  # fmt: skip
def test_other_sparsifiers_and_shared_experts_need_dense_matrices(tmp_path, given, no_dense_matrix, more):
    with pytest.raises(AssertionError, match="a dense matrix was asked for"):
        main([*given, *more, f"out={tmp_path / 'out'}"])


@pytest.mark.parametrize("last", ["an adapter with a whole module", "a full model"])
@torch.inference_mode()
def test_experts_that_are_more_than_factors(tmp_path, last):
    save(tmp_path / "base", "bert", 0)
    for number, settings in enumerate(SETTINGS[:2]):
        adapter(tmp_path / f"a{number}", tmp_path / "base", "bert", number + 1, **settings)
    if last == "a full model":
        save(tmp_path / "a2", "bert", 3)
        expected = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a2")
    else:
        adapter(tmp_path / "a2", tmp_path / "base", "bert", 3, **SETTINGS[2], modules_to_save=["classifier"])
        expected = unloaded(tmp_path, 2)
    assert main([*arguments(tmp_path), f"out={tmp_path / 'out'}"]) == 0
    found = TwinMergedModel.from_pretrained(tmp_path / "out")(
        input_ids=IDS, weights=torch.eye(3)[2].expand(len(IDS), -1)
    ).logits
    torch.testing.assert_close(found, expected.eval()(input_ids=IDS).logits, rtol=1e-3, atol=1e-4)
