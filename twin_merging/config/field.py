"""Options of the methods that came after the paper's baselines: on whole matrices, and by election."""

from __future__ import annotations

from dataclasses import dataclass

from twin_merging.config.option import TINY, option
from twin_merging.config.registries import merge_methods


@dataclass
class TsvMerge:
    """θ₀ + λ U⊥ S V⊥ᵀ of each matrix: every task's top singular vectors, side by side and decorrelated."""

    name: str = "tsv_merge"
    scaling: float = option(1.0, "λ", low=-10, high=10)
    matrices: list[str] = option([".*"], "regular expressions: 2-D parameters that merge so; the rest is averaged")
    grid: list[float] | None = option(None, "λ to choose from on validation; null: take scaling", low=-10, high=10)


@dataclass
class IsoC:
    """θ₀ + λ σ̄ U Vᵀ of each matrix, where Σ τ_t = U S Vᵀ and σ̄ is the mean of S: all directions equally strong."""

    name: str = "iso_c"
    scaling: float = option(1.0, "λ", low=-10, high=10)
    matrices: list[str] = option([".*"], "regular expressions: 2-D parameters that merge so; the rest is averaged")
    grid: list[float] | None = option(None, "λ to choose from on validation; null: take scaling", low=-10, high=10)


@dataclass
class Wudi:
    """θ₀ + λ τ of each linear layer, where τ, found by Adam from Σ τ_t, disturbs the experts' inputs least."""

    name: str = "wudi"
    scaling: float = option(1.0, "λ", low=-10, high=10)
    steps: int = option(300, "Adam steps", low=0)
    lr: float = option(1e-5, "Adam learning rate", low=TINY, high=1)
    matrices: list[str] = option(
        ["(?!.*embed).*weight"], "regular expressions: 2-D parameters that are linear layers' weights"
    )
    rest: str = option("pretrained", "what all other parameters are", choices=("pretrained", "average"))
    grid: list[float] | None = option(None, "λ to choose from on validation; null: take scaling", low=-10, high=10)


@dataclass
class Expert:
    """θ_t of one task: the shared expert of the ablation without one (paper Table 6, Dynamic Merging)."""

    name: str = "expert"
    index: int = option(0, "whose expert: the task's place in tasks.names, from 0", low=0)


@dataclass
class Emr:
    """θ₀ + λ_t M_t τ of the task that the router elects: one vector for all tasks, a mask and a rescaler for each.

    The router reads θ₀'s states, as no other encoder is the same for all tasks.
    """

    name: str = "emr"


merge_methods.add("tsv_merge", TsvMerge, "twin_merging.merging.tsv:tsv_merge")
merge_methods.add("iso_c", IsoC, "twin_merging.merging.iso:iso_c")
merge_methods.add("wudi", Wudi, "twin_merging.merging.wudi:wudi")
merge_methods.add("expert", Expert, "twin_merging.merging.expert:expert")
merge_methods.add("emr", Emr, "twin_merging.merging.emr:elect")
