"""LoRA experts: θ₀ plus a product of rank r in every adapted matrix, and nothing else changed in the encoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import results, succeed
from safetensors.torch import load_file
from torch import Tensor

RANK = 2


@pytest.fixture(scope="module")
def lora(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with low-rank experts."""
    folder = tmp_path_factory.mktemp("lora")
    arguments = ["finetune=lora", f"finetune.rank={RANK}", "finetune.alpha=8", "finetune.epochs=2", "hydra.run.dir=run"]
    succeed(
        "merge_method=twin",
        *(argument for argument in small if "finetune.epochs" not in argument),
        *arguments,
        folder=folder,
    )
    return folder


@pytest.fixture(scope="module")
def changes(lora: Path, bert: Path) -> dict[str, dict[str, Tensor]]:
    """expert − base of every encoder tensor, by task."""
    base, found = load_file(bert / "model.safetensors"), {}
    for path in lora.glob("outputs/cache/expert/*/manifest.json"):
        expert = load_file(path.parent / "model.safetensors")
        name = json.loads(path.read_text())["label"]
        found[name] = {key: expert["bert." + key] - tensor for key, tensor in base.items()}
    return found


def is_adapted(name: str, change: Tensor) -> bool:
    return change.dim() == 2 and "embeddings" not in name


def test_every_task_has_an_expert_in_the_form_of_a_whole_model(lora: Path, changes: dict[str, dict[str, Tensor]]):
    assert set(changes) == {"colour", "size", "answer"}
    result = results(lora / "run")["twin", "oracle"]
    assert result["provenance"]["config"]["finetune"]["name"] == "lora"
    assert not list(lora.glob("outputs/cache/expert/*/adapter*"))


def test_each_linear_layer_changes_by_a_matrix_of_rank_r(changes: dict[str, dict[str, Tensor]]):
    for tensors in changes.values():
        adapted = {name: change for name, change in tensors.items() if is_adapted(name, change)}
        assert len(adapted) >= 12  # six matrices a layer
        for name, change in adapted.items():
            values = torch.linalg.svdvals(change.double())
            assert values[RANK - 1] > 1e-5, name  # as much as the rank allows
            assert values[RANK] < 1e-3 * values[0] + 1e-6, name  # only the rounding of θ₀ + ΔW in float32 is left


def test_embeddings_norms_and_biases_stay_as_they_are(changes: dict[str, dict[str, Tensor]]):
    for tensors in changes.values():
        for name, change in tensors.items():
            if not is_adapted(name, change):
                assert not change.any(), name


def test_the_change_is_the_scaled_product_of_the_factors(tmp_path: Path, bert: Path, data: Path):
    """α/r·BA: with a random B, which peft starts at 0, the merged model differs from θ₀ by just that product."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification

    from twin_merging.config import LoraFineTuning

    options, name = LoraFineTuning(rank=RANK, alpha=8), "bert.encoder.layer.0.output.dense"
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    before = model.get_parameter(name + ".weight").detach().clone()
    adapted = get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.SEQ_CLS, r=options.rank, lora_alpha=options.alpha, target_modules=options.targets
        ),
    )
    layer = adapted.get_submodule("base_model.model." + name)
    A, B = layer.lora_A["default"].weight.detach(), torch.randn_like(layer.lora_B["default"].weight)
    layer.lora_B["default"].weight.data.copy_(B)
    after = adapted.merge_and_unload().get_parameter(name + ".weight").detach()
    torch.testing.assert_close(after - before, options.alpha / options.rank * B @ A, atol=1e-5, rtol=1e-4)
