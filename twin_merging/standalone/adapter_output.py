"""Several LoRA adapters as one, where the method makes a product of low rank of them: exact, or cut to a rank.

Σ_t w_t s_t B_t A_t = [w_1 s_1 B_1 .. w_T s_T B_T]·[A_1; ..; A_T], of rank Σ r_t at most. Its best approximation of a smaller
rank follows from QR decompositions of the stacked factors (paper appendix A); the dense product is never formed. TSV-Merge and
Iso-C are not linear in the task vectors, but what they make has that rank too (``merging.factored``).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twin_merging import checkpoints
from twin_merging.errors import UserError
from twin_merging.standalone.adapters import PEFT_PREFIX, Adapter, Pair
from twin_merging.standalone.layout import Layout
from twin_merging.standalone.options import MergeOptions
from twin_merging.standalone.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS

WEIGHTS = {
    "weight_averaging": lambda method, experts: 1 / experts,
    "task_arithmetic": lambda method, experts: method.scaling,
}
"""The methods linear in the task vectors, and the weight w_t that each gives to all of them."""
LOW_RANK = (*WEIGHTS, "tsv_merge", "iso_c")
"""The methods that make a product of low rank of such ones."""


def as_adapter(options: MergeOptions, method: Any, layout: Layout) -> bool:
    """Whether the result, or a twin's shared expert, is an adapter.

    Args:
        method: options of the static method that makes it.

    Raises:
        UserError: if one is asked for and the result cannot be one.
    """
    reason = obstacle(method, layout)
    wanted = options.output == "adapter" or options.adapter_rank is not None
    if wanted and reason is not None:
        key = "adapter_rank" if options.output != "adapter" else "output"
        raise UserError(
            f"the result is no adapter, since {reason}", key=key, found=getattr(options, key),
            expected="LoRA adapters alone and " + " or ".join(LOW_RANK), hint="output=model merges into a full model",
        )  # fmt: skip
    return options.output != "model" and reason is None


def obstacle(method: Any, layout: Layout) -> str | None:
    """Why the model that a method makes is not θ₀ and an adapter; None where it is."""
    if not all(isinstance(expert, Adapter) for expert in layout.experts):
        return "experts are full models"
    if getattr(method, "gamma", None) is not None:
        return "experts have weights of their own"
    if method.name not in LOW_RANK:
        return f"{method.name} makes no product of low rank"
    for number, expert in enumerate(adapters_of(layout)):
        if whole := sorted(set(expert.whole) & set(layout.selected)):
            return f"experts[{number}] has whole tensors such as {whole[0]} besides its factors"
    for name, pairs in pairs_of(layout).items():
        if len({(pair.module, pair.transposed) for _, pair in pairs}) > 1:
            return f"the adapters call {name} by different names"
    return None


def write_adapter(options: MergeOptions, method: Any, layout: Layout, folder: Path) -> list[str]:
    """Write the merged adapter and its configuration.

    Args:
        method: options of the method, one of ``LOW_RANK``.

    Returns:
        The weight files' names.

    Raises:
        UserError: if a factor holds NaN or infinity.
    """
    dtype = torch.float32 if options.dtype == "base" else getattr(torch, options.dtype)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, pairs in pairs_of(layout).items():
        for number, pair in pairs:
            checkpoints.check_finite(pair.A, f"experts[{number}]: {name}: A")
            checkpoints.check_finite(pair.B, f"experts[{number}]: {name}: B")
        A, B = merged_factors(name, [pair for _, pair in pairs], method, len(layout.experts), options.adapter_rank)
        _, first = pairs[0]
        ranks[first.module] = len(A)
        ends = ("lora_embedding_A", "lora_embedding_B") if first.embedding else ("lora_A.weight", "lora_B.weight")
        for end, factor in zip(ends, (A, B), strict=True):
            tensors[f"{PEFT_PREFIX}{first.module}.{end}"] = factor.to(dtype)
            checkpoints.check_finite(tensors[f"{PEFT_PREFIX}{first.module}.{end}"], f"{method.name}: {name}")
    checkpoints.save(tensors, folder / ADAPTER_WEIGHTS)
    configs = [expert.source.config for expert in adapters_of(layout)]
    (folder / ADAPTER_CONFIG).write_text(json.dumps(_config(options, configs, ranks), indent=2))
    return [ADAPTER_WEIGHTS]


def merged_factors(
    name: str, pairs: Sequence[Pair], method: Any, experts: int, rank: int | None
) -> tuple[Tensor, Tensor]:
    """A (r, n) and B (m, r) whose product is a method's τ of one parameter, or its best approximation of a smaller rank.

    Args:
        pairs: of the adapters that change it.
        experts: how many merge.
        rank: at most; None: what the method makes.
    """
    left, right = [pair.B.float() * pair.scale for pair in pairs], [pair.A.float() for pair in pairs]
    if method.name in WEIGHTS:
        left = [B * WEIGHTS[method.name](method, experts) for B in left]
    else:
        from twin_merging.merging import factored  # which loads scipy

        A, B = factored.merged(name, left, right, experts, method)
        left, right = [B], [A]
    if rank is None or sum(len(A) for A in right) <= rank:
        return torch.cat(right), torch.cat(left, 1)
    from twin_merging.sparsifiers.low_rank import svd_of_sums  # which loads scipy

    factors = svd_of_sums(left, right, torch.ones(1, len(left)), rank)
    root = factors.S[0].sqrt()
    return root.unsqueeze(1) * factors.V[0].mT, factors.U[0] * root


def _config(options: MergeOptions, configs: Sequence[dict[str, Any]], ranks: dict[str, int]) -> dict[str, Any]:
    """α equals r in each module, so that PEFT scales the factors by 1."""
    ((usual, _),) = Counter(ranks.values()).most_common(1)
    others = {module: rank for module, rank in ranks.items() if rank != usual}
    tasks = {config.get("task_type") for config in configs}
    return {
        "peft_type": "LORA",
        "task_type": tasks.pop() if len(tasks) == 1 else None,
        "base_model_name_or_path": configs[0].get("base_model_name_or_path") or options.base,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "fan_in_fan_out": bool(configs[0].get("fan_in_fan_out")),
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "inference_mode": True,
    }


def adapters_of(layout: Layout) -> list[Adapter]:
    """The experts that are adapters."""
    return [expert for expert in layout.experts if isinstance(expert, Adapter)]


def pairs_of(layout: Layout) -> dict[str, list[tuple[int, Pair]]]:
    """By the base's name, each adapter's number and pair, of what merges."""
    chosen = set(layout.selected)
    found: dict[str, list[tuple[int, Pair]]] = {}
    for number, expert in enumerate(adapters_of(layout)):
        for name, pair in expert.pairs.items():
            if name in chosen:
                found.setdefault(name, []).append((number, pair))
    return found
