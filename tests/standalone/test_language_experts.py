"""Adapters that experts/completions.py trains merge by their products: static methods, and twins from the factors alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from backbones.tiny_language import backbone_of, save_language
from oracles.dynamic import multiplied_out
from peft import PeftModel

from twin_merging.config import CausalLora, Svd, merge_methods
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.experts.completions import causal_lora
from twin_merging.mapped import MappedCheckpoint
from twin_merging.merging.apply import merge
from twin_merging.merging.method import kind_of
from twin_merging.standalone.adapter_output import LOW_RANK, merged_factors, pairs_of
from twin_merging.standalone.adapter_twin import factored_knowledge
from twin_merging.standalone.adapters import Adapter
from twin_merging.standalone.layout import Layout
from twin_merging.standalone.options import MergeOptions
from twin_merging.standalone.sources import Source
from twin_merging.tasks.generation import Example, Request
from twin_merging.validation import STATIC_METHODS_EXCLUDED

SETTINGS = [
    {"rank": 4, "alpha": 8, "targets": r".*\.(q_proj|v_proj)"},
    {"rank": 2, "alpha": 6, "targets": "all-linear"},
    {"rank": 3, "alpha": 9, "targets": r".*(embed_tokens|v_proj|down_proj)"},
]  # other ranks and scales, matrices that only some of them touch, and an embedding
ALL_RANKS = sum(settings["rank"] for settings in SETTINGS)
METHODS = [
    name
    for name, known in merge_methods.items()
    if name not in STATIC_METHODS_EXCLUDED and kind_of(known.load()).needs is None
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A language model and three trained adapters of it."""
    place = tmp_path_factory.mktemp("experts")
    backbone = backbone_of(save_language(place / "base"))
    for number, settings in enumerate(SETTINGS):
        rows = [Example(f"{number}{letter} {letter}:", f" {chr(ord(letter) + number + 1)}") for letter in "abcdefghij"]
        options = CausalLora(epochs=4, lr=2e-2, batch_size=5, **settings)
        causal_lora(
            backbone, str(number), rows, rows[:3], options, number, place / str(number), place / f"{number}.part"
        )
    return place


@pytest.fixture(scope="module")
def layout(folder) -> Layout:
    base = MappedCheckpoint(folder / "base")
    sources = [Source(f"experts.{number}", str(number), folder / str(number), {}) for number in range(len(SETTINGS))]
    return Layout(base, [Adapter(base, source) for source in sources], list(base))


@pytest.fixture(scope="module")
def experts(folder) -> list[dict[str, torch.Tensor]]:
    """As PEFT itself adds the products to the base."""
    return [
        PeftModel.from_pretrained(backbone_of(folder / "base").load(), folder / str(number))
        .merge_and_unload()
        .state_dict()
        for number in range(len(SETTINGS))
    ]


def test_experts_are_what_peft_makes_of_them(layout, experts):
    for adapter, expert in zip(layout.experts, experts, strict=True):
        assert set(adapter) == set(expert)
        for name in adapter:
            torch.testing.assert_close(adapter[name], expert[name], rtol=0, atol=1e-6)
    moved = [{name for name in layout.base if not torch.equal(expert[name], layout.base[name])} for expert in experts]
    assert [len(names) for names in moved] == [4, 14, 5]
    assert all(
        (expert[name] - layout.base[name]).abs().max() > 0.02
        for expert, names in zip(experts, moved, strict=True)
        for name in names
    )


@pytest.mark.parametrize("name", METHODS)
def test_static_methods_merge_products_as_they_merge_dense_matrices(layout, experts, name):
    method, options = merge_methods[name].load(), merge_methods[name].options()
    start = {key: layout.base[key] for key in layout.base}
    expected = merge(method, options, start, experts, list(start), seed=3)
    found = merge(method, options, layout.base, layout.experts, layout.selected, seed=3)
    for key in start:
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-5)
    assert name == "pretrained" or any((found[key] - start[key]).abs().max() > 1e-3 for key in start)


@pytest.mark.parametrize("name", LOW_RANK)
@pytest.mark.parametrize("matrices", [".*", ".*proj.*", "nothing"])
def test_what_methods_of_low_rank_make_is_an_adapter_again(layout, name, matrices):
    """As of dense float64 matrices, in which nothing is rounded to float32."""
    options = merge_methods[name].options()
    if hasattr(options, "matrices"):
        options = replace(options, matrices=[matrices])
    start = {key: layout.base[key].double() for key in layout.base}
    wide = [
        {**start, **{key: start[key] + _product(*pair.oriented()) for key, pair in adapter.pairs.items()}}
        for adapter in layout.experts
    ]
    dense, ranks = merge(merge_methods[name].load(), options, start, wide, list(start)), set()
    for key, pairs in pairs_of(layout).items():
        A, B = merged_factors(key, [pair for _, pair in pairs], options, len(wide), None)
        product = _product(A.mT, B.mT) if pairs[0][1].transposed else _product(B, A)
        torch.testing.assert_close(product, dense[key] - start[key], rtol=0, atol=1e-5)
        assert A.dtype == B.dtype == torch.float32
        assert len(A) <= sum(len(pair.A) for _, pair in pairs)
        ranks.add(len(A))
        smaller = merged_factors(key, [pair for _, pair in pairs], options, len(wide), 1)
        assert len(smaller[0]) == smaller[1].shape[1] == 1
    assert max(ranks) > 1


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return left.double() @ right.double()


SHARED = merge_methods["task_arithmetic"].options(scaling=0.3)


def knowledge(layout: Layout, rank: int):
    found = factored_knowledge(MergeOptions(sparsifier=Svd(rank=rank)), SHARED, layout)
    assert found is not None
    return dict(found)


@pytest.mark.parametrize("rank", [1, 3, ALL_RANKS])
def test_the_factors_are_the_svd_of_the_dense_matrices(layout, experts, rank):
    """Up to the rank, and all of them where the rank is that of all adapters together."""
    found = knowledge(layout, rank)
    for key, kept in found.items():
        deltas = torch.stack([expert[key].double() - layout.base[key].double() for expert in experts])
        exclusive = deltas - 0.3 * deltas.sum(0)
        U, S, Vt = torch.linalg.svd(exclusive, full_matrices=False)
        dense = (U[..., :rank] * S[:, None, :rank]) @ Vt[:, :rank]
        torch.testing.assert_close(multiplied_out(kept).double(), dense, rtol=0, atol=1e-5)
        if rank == ALL_RANKS:
            torch.testing.assert_close(multiplied_out(kept).double(), exclusive, rtol=0, atol=1e-5)
    assert set(found) == {
        key for key in layout.base if any(not torch.equal(expert[key], layout.base[key]) for expert in experts)
    }


def twin_of(folder: Path, layout: Layout, rank: int) -> TwinMergedModel:
    method = merge_methods["task_arithmetic"].load()
    merged = merge(method, SHARED, layout.base, layout.experts, layout.selected)
    return TwinMergedModel(backbone_of(folder / "base").model_with(merged), knowledge(layout, rank))


@torch.no_grad()
@pytest.mark.parametrize("rank", [1, 3])
def test_a_twin_answers_as_the_dense_computation(folder, layout, experts, rank):
    """θ_s + Σ_t w_t SVD_r(θ_t − θ_s), made anew for each example from PEFT's dense matrices."""
    weights, ids = (
        torch.softmax(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), 1),
        torch.arange(40).view(4, 10),
    )
    found = twin_of(folder, layout, rank)(input_ids=ids, weights=weights).logits
    start = {key: layout.base[key].double() for key in layout.base}
    shared = {key: x + 0.3 * sum(expert[key].double() - x for expert in experts) for key, x in start.items()}
    for row in range(len(ids)):
        merged = dict(shared)
        for key in shared:
            for w, expert in zip(weights[row], experts, strict=True):
                left = expert[key].double() - shared[key]
                if left.dim() > 1:
                    U, S, Vt = torch.linalg.svd(left, full_matrices=False)
                    merged[key] = merged[key] + w.double() * (U[:, :rank] * S[:rank]) @ Vt[:rank]
        model = backbone_of(folder / "base").model_with(merged)
        expected = model(input_ids=ids[row : row + 1]).logits
        assert (found[row] - expected[0]).abs().max() < 1e-5 * expected.abs().max()


def test_at_full_rank_each_expert_speaks_again(folder, layout):
    """A batch of all tasks, each prompt under its own expert, says what the three adapted models say one by one."""
    backbone, prompts = (
        backbone_of(folder / "base"),
        [f"{number}{letter} {letter}:" for letter in "abk" for number in range(3)],
    )
    requests = [Request(prompt, 8) for prompt in prompts]
    found = backbone.complete(twin_of(folder, layout, ALL_RANKS), requests, 4, "test", torch.eye(3).repeat(3, 1))
    for number in range(3):
        model = PeftModel.from_pretrained(backbone.load(), folder / str(number))
        assert found[number::3] == backbone.complete(model, requests[number::3], 4, "test")
    assert found != backbone.complete(twin_of(folder, layout, 1), requests, 4, "test", torch.eye(3).repeat(3, 1))
