"""PEFT LoRA adapters: as experts of a merge, and as its result where the method is linear in the task vectors, or makes as low a rank.

ΔW = s·B·A with s = α/r, or α/√r for rank-stabilized LoRA. A sum of such products has the stacked factors, exactly:
Σ w_t s_t B_t A_t = [w_1 s_1 B_1 .. w_T s_T B_T]·[A_1; ..; A_T].
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from twin_merging.errors import UserError
from twin_merging.mapped import MappedCheckpoint
from twin_merging.standalone.names import prefixes, renamed
from twin_merging.standalone.sources import ADAPTER_CONFIG, Source

PEFT_PREFIX = "base_model.model."
FACTORS = re.compile(r"(.+)\.lora_(embedding_)?(A|B)(?:\.weight)?")
CHANGED_BASES = ("pissa", "olora", "loftq", "corda")
"""Initializations that change the base's weights, so that s·B·A is no difference to the base as it was saved."""


class Pair(NamedTuple):
    """One matrix's adapter: ΔW = scale·B·A, transposed where the matrix is stored as (in, out) or is an embedding.

    Args:
        module: the name of the adapter's module, without ``.weight``.
        embedding: it is stored under the names that PEFT gives an embedding's factors.
    """

    A: Tensor
    B: Tensor
    scale: float
    module: str
    embedding: bool
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Of ΔW."""
        m, n = len(self.B), self.A.shape[1]
        return (n, m) if self.transposed else (m, n)

    def product(self) -> Tensor:
        """ΔW in float32."""
        product = torch.mm(self.B.float(), self.A.float()).mul_(self.scale)
        return product.mT if self.transposed else product

    def oriented(self) -> tuple[Tensor, Tensor]:
        """(m, r) and (r, n) whose product is ΔW, in float32."""
        B, A = self.B.float() * self.scale, self.A.float()
        return (A.mT, B.mT) if self.transposed else (B, A)


class Adapter(Mapping[str, Tensor]):
    """θ_t = θ₀ + ΔW_t under the base's names; a matrix is made when it is asked for.

    Biases and modules that the adapter keeps whole take the place of the base's.

    Args:
        base: θ₀.
        source: the adapter.

    Raises:
        UserError: if it is no LoRA, or of a kind whose weights are not θ₀ + s·B·A.
    """

    def __init__(self, base: MappedCheckpoint, source: Source):
        self.base, self.source = base, source
        _check(source)
        self.pairs, self.whole, self.left_out = _read(base, source)

    def __getitem__(self, name: str) -> Tensor:
        start = self.source.weights[self.whole[name]] if name in self.whole else self.base[name]
        if name not in self.pairs:
            return start
        return self.pairs[name].product().add_(start.to(torch.promote_types(start.dtype, torch.float32)))

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)

    @property
    def changed(self) -> Mapping[str, Tensor]:
        """θ_t of what the adapter changes; each tensor is made when it is asked for."""
        return _Chosen(self, (*self.pairs, *self.whole))

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without making it."""
        if name in self.pairs:
            return self.pairs[name].shape
        return (
            self.source.weights.entries[self.whole[name]].shape if name in self.whole else self.base.entries[name].shape
        )


class _Chosen(Mapping[str, Tensor]):
    def __init__(self, whole: Mapping[str, Tensor], names: Iterable[str]):
        self._whole, self._names = whole, dict.fromkeys(names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._whole[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _check(source: Source) -> None:
    config = source.config
    initialized = str(config.get("init_lora_weights", ""))
    reasons = {
        "peft_type": config.get("peft_type") != "LORA" and config.get("peft_type"),
        "use_dora": config.get("use_dora"),
        "init_lora_weights": initialized.startswith(CHANGED_BASES) and initialized,
        "layer_replication": config.get("layer_replication"),
        "target_parameters": config.get("target_parameters"),
        "trainable_token_indices": config.get("trainable_token_indices"),
    }
    for key, found in reasons.items():
        if found:
            raise UserError(
                "this adapter is not ΔW = s·B·A of whole matrices", key=f"{source.key}: {ADAPTER_CONFIG}: {key}",
                found=found, expected="LoRA of linear layers and embeddings, with or without rank stabilization",
                hint="merge it into its base with peft (merge_and_unload) and give the full model",
            )  # fmt: skip


def _read(base: MappedCheckpoint, source: Source) -> tuple[dict[str, Pair], dict[str, str], list[str]]:
    """Pairs and whole tensors by the base's names, and the names of whole tensors that the base has no place for."""
    factors: dict[str, dict[str, str]] = {}
    embeddings, others = set(), {}
    for name in source.weights:
        own = name.removeprefix(PEFT_PREFIX)
        match = FACTORS.fullmatch(own)
        if match:
            factors.setdefault(f"{match[1]}.weight", {})[match[3]] = name
            if match[2]:
                embeddings.add(f"{match[1]}.weight")
        else:
            others[own.replace(".base_layer.", ".")] = name
    prefix = prefixes(factors, base.entries)
    pairs, whole, left_out = {}, {}, []
    for own, names in factors.items():
        target = renamed(own, prefix)
        if set(names) != {"A", "B"} or target not in base.entries:
            raise UserError(
                "this adapter does not fit the base", key=f"{source.key}: {own}", found=", ".join(names.values()),
                expected="A and B of a matrix of the base", hint=f"its base is {source.config.get('base_model_name_or_path')}",
            )  # fmt: skip
        A, B = source.weights[names["A"]], source.weights[names["B"]]
        if A.dim() != 2 or B.dim() != 2 or len(A) != B.shape[1]:
            raise UserError(
                "only matrices have adapters that can be merged", key=f"{source.key}: {own}",
                found=f"A {list(A.shape)}, B {list(B.shape)}", expected="A [r, n], B [m, r]",
            )  # fmt: skip
        module, embedding = own.removesuffix(".weight"), own in embeddings
        transposed = embedding or bool(source.config.get("fan_in_fan_out"))
        pairs[target] = Pair(A, B, _scale(source, module, len(A)), module, embedding, transposed)
    for own, name in others.items():
        target = renamed(own, prefix)
        if target not in base.entries:
            left_out.append(name)
        elif not _same(base, target, source.weights, name):  # peft adds copies of the base's embeddings
            whole[target] = name
    return pairs, whole, left_out


def _same(base: MappedCheckpoint, name: str, other: MappedCheckpoint, own: str) -> bool:
    return base.entries[name] == other.entries[own] and torch.equal(base[name], other[own])


def _scale(source: Source, module: str, rank: int) -> float:
    """s of one module; PEFT lets patterns set α for some of them."""
    config = source.config
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
