"""Exclusive knowledge of LoRA adapters, from their factors (paper appendix A).

With θ_s = θ₀ + Σ_s c_s ΔW_s the knowledge v_t = ΔW_t − Σ_s c_s ΔW_s is itself a sum of low-rank products, so that its
singular value decomposition needs no dense matrix. What no adapter touches is the same in all experts and in θ_s: v_t = 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from twin_merging.config import Svd
from twin_merging.merging.stack import in_parallel
from twin_merging.sparsifiers.low_rank import svd_of_sums
from twin_merging.sparsifiers.ranks import fixed_rank, needs_whole_spectrum
from twin_merging.sparsifiers.svd import Factors
from twin_merging.standalone.adapter_output import WEIGHTS, adapters_of, pairs_of
from twin_merging.standalone.adapters import Pair
from twin_merging.standalone.layout import Layout
from twin_merging.standalone.options import MergeOptions

SHARES = {**WEIGHTS, "pretrained": lambda method, experts: 0.0}
"""The shared methods whose θ_s − θ₀ is c Σ_s ΔW_s, and the c that each gives to all of them."""


def factored_knowledge(options: MergeOptions, shared: Any, layout: Layout) -> Iterator[tuple[str, Factors]] | None:
    """The top triplets of v_t of each matrix that an adapter touches, in no set order; of the others nothing, as v_t = 0.

    They are those of v_t itself. What rounding θ_s to the ``dtype`` it is written in has changed is not in them.

    Args:
        shared: options of the method that makes θ_s.

    Returns:
        Name and factors, of at most Σ_t r_t triplets, in float32. None where factors do not suffice: an expert is no
        adapter or has tensors beside its factors, the shared method is not linear, or the sparsifier is not the SVD with a
        rank known beforehand.
    """
    chosen, sparsifier, adapters = set(layout.selected), options.sparsifier, adapters_of(layout)
    if len(adapters) < len(layout.experts) or any(chosen & set(adapter.whole) for adapter in adapters):
        return None
    if shared.name not in SHARES or not isinstance(sparsifier, Svd) or needs_whole_spectrum(sparsifier):
        return None
    experts = len(adapters)
    weights = torch.eye(experts) - SHARES[shared.name](shared, experts)  # row t is e_t − c

    def by_matrix(name: str, pairs: list[tuple[int, Pair]]) -> Factors:
        """An adapter that leaves this matrix as it is has no factors, and hence no column."""
        oriented = [pair.oriented() for _, pair in pairs]
        left, right = [B for B, _ in oriented], [A for _, A in oriented]
        r = fixed_rank(len(left[0]), right[0].shape[1], sparsifier)
        return svd_of_sums(left, right, weights[:, [number for number, _ in pairs]], r)

    jobs = list(pairs_of(layout).items())
    return ((name, kept) for (name, _), kept in in_parallel(by_matrix, jobs, "compress exclusive knowledge"))
