"""SmolLM2 learns real rows of two tasks, and a merged model of both answers a mixed batch as each expert does alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from backbones.tiny_language import backbone_of

from twin_merging import assets
from twin_merging.backbones.causal_lm import CausalLMBackbone
from twin_merging.config import CausalLora, Svd, WeightAveraging
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.experts.completions import causal_lora, labelled, losses, padded
from twin_merging.experts.language import expert_model, expert_weights
from twin_merging.merging.apply import merge
from twin_merging.merging.averaging import weight_averaging
from twin_merging.standalone.adapter_twin import factored_knowledge
from twin_merging.standalone.adapters import Adapter
from twin_merging.standalone.layout import Layout
from twin_merging.standalone.options import MergeOptions
from twin_merging.tasks.generation import Example, Request

pytestmark = pytest.mark.slow
UPPER = r"model\.layers\.2[6-9]\..*_proj"  # the last four blocks, so that no gradient goes further down
ROWS, HELD_OUT = 24, 8


def bbq(folder: Path) -> list[Example]:
    lines = (folder / "generative/bbq/data/Age.jsonl").read_text().splitlines()[: ROWS + HELD_OUT]
    return [
        Example(
            f"Passage: {row['context']}\nQuestion: {row['question']}\nA. {row['ans0']}\nB. {row['ans1']}\nC. {row['ans2']}\nAnswer:",
            f" {'ABC'[row['label']]}",
        )
        for row in map(json.loads, lines)
    ]


def dolly(folder: Path) -> list[Example]:
    lines = (folder / "generative/dolly/dolly_sample.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if not row["context"]][: ROWS + HELD_OUT]
    return [Example(f"Question: {row['instruction']}\nAnswer:", f" {row['response'][:200]}") for row in rows]


@torch.no_grad()
def loss_of(model, backbone: CausalLMBackbone, rows: list[Example]) -> float:
    batch = padded(labelled(backbone, rows, 256))
    total, count = losses(model(**batch).logits, batch["labels"]).sum(0).tolist()
    return total / count


def test_two_tasks_are_learnt_and_merged(shared_data, need_asset, tmp_path):
    backbone = backbone_of(assets.model_folder("smollm2", need_asset("smollm2")))
    base, prompts = backbone.load(), []
    for number, read in enumerate((bbq, dolly)):
        rows = read(shared_data)
        rows, held_out = rows[:ROWS], rows[ROWS:]
        options = CausalLora(
            epochs=1, lr=2e-3, batch_size=8, rank=8 + 4 * number, alpha=16, targets=UPPER, max_length=256
        )
        causal_lora(
            backbone, read.__name__, rows, held_out, options, 0, tmp_path / str(number), tmp_path / f"{number}.part"
        )
        expert = expert_model(backbone, tmp_path / str(number))
        assert loss_of(expert, backbone, held_out) < loss_of(base, backbone, held_out) - 0.01
        assert (tmp_path / str(number) / "adapter_model.safetensors").stat().st_size < 5e6
        prompts.append([Request(row.prompt, 5) for row in held_out[:3]])

    adapters = [expert_weights(backbone, tmp_path / str(number)) for number in range(2)]
    assert isinstance(adapters[0], Adapter)
    start = adapters[0].base
    layout = Layout(start, adapters, list(start))
    knowledge = dict(factored_knowledge(MergeOptions(sparsifier=Svd(rank=20)), WeightAveraging(), layout) or ())
    assert len(knowledge) == 4 * 7
    shared = merge(
        weight_averaging, WeightAveraging(), {name: start[name].float() for name in start}, adapters, list(knowledge)
    )
    twin = TwinMergedModel(backbone.model_with({name: shared[name] for name in knowledge}), knowledge)
    mixed = [request for pair in zip(*prompts, strict=True) for request in pair]
    found = backbone.complete(twin, mixed, 6, "test", torch.eye(2).repeat(3, 1))
    for number in range(2):
        expert = expert_model(backbone, tmp_path / str(number))
        assert found[number::2] == backbone.complete(expert, prompts[number], 1, "test")
