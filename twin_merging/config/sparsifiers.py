"""Options of the sparsifiers."""

from __future__ import annotations

from dataclasses import dataclass

from twin_merging.config.option import TINY, option
from twin_merging.config.registries import sparsifiers


@dataclass
class Svd:
    """Keep the top singular triplets of every 2-D matrix; other tensors are kept whole.

    At most one of the first four is set; with none it is rank 16.
    """

    name: str = "svd"
    rank: int | None = option(None, "triplets a matrix", low=1)
    fraction: float | None = option(None, "triplets as a share of min(m, n)", low=TINY, high=1)
    budget: int | None = option(None, "bytes on disk of all experts' exclusive knowledge", low=1)
    energy: float | None = option(None, "share of every matrix's squared norm to keep at least", low=TINY, high=1)
    solver: str = option(
        "auto", "of the decomposition: the faster one that is close", choices=("auto", "exact", "randomized")
    )


@dataclass
class Magnitude:
    """Keep the largest numbers of every tensor of two or more dimensions; others are kept whole.

    At most one of the first three is set; with none it is a tenth.
    """

    name: str = "magnitude"
    fraction: float | None = option(None, "share of the numbers to keep", low=TINY, high=1)
    budget: int | None = option(None, "bytes on disk of all experts' exclusive knowledge", low=1)
    energy: float | None = option(None, "share of the squared norm to keep at least", low=TINY, high=1)
    threshold: str = option(
        "global", "largest of an expert's whole knowledge, or of each tensor", choices=("global", "per_tensor")
    )


@dataclass
class Bernoulli:
    """Drop each number of tensors of two or more dimensions at random; others are kept whole."""

    name: str = "bernoulli"
    drop_rate: float = option(0.9, "chance p of each number to be dropped", low=0, high=1 - TINY)
    rescale: bool = option(True, "divide what is kept by 1 - p, which keeps its mean")


@dataclass
class NoSparsifier:
    """Keep v_t whole."""

    name: str = "none"


sparsifiers.add("svd", Svd, "twin_merging.sparsifiers.svd:truncate")
sparsifiers.add("magnitude", Magnitude, "twin_merging.sparsifiers.magnitude:keep_largest")
sparsifiers.add("bernoulli", Bernoulli, "twin_merging.sparsifiers.bernoulli:drop_at_random")
sparsifiers.add("none", NoSparsifier, "twin_merging.sparsifiers.none:keep")
