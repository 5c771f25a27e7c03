"""Options of the merge methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twin_merging.config.option import option
from twin_merging.config.registries import merge_methods


@dataclass
class Pretrained:
    """θ₀: the encoder before fine-tuning, with the experts' heads."""

    name: str = "pretrained"


@dataclass
class Finetuned:
    """T separate encoders, the reference of every normalized score: θ_t of the true task, or with routed heads of the top task"""

    name: str = "finetuned"


@dataclass
class WeightAveraging:
    """(1/T) Σ θ_t"""

    name: str = "weight_averaging"


@dataclass
class TaskArithmetic:
    """θ₀ + λ Σ γ_t τ_t"""

    name: str = "task_arithmetic"
    scaling: float = option(0.3, "λ", low=-10, high=10)
    grid: list[float] | None = option(None, "λ to choose from on validation; null: take scaling", low=-10, high=10)
    gamma: list[float] | None = option(None, "γ_t of each merged expert, in order; null: 1 each", low=-10, high=10)


@dataclass
class Ties:
    """θ₀ + λ τ: trim each τ_t to its largest numbers, elect a sign for each number, merge those that agree with it"""

    name: str = "ties"
    scaling: float = option(1.0, "λ", low=-10, high=10)
    density: float = option(0.2, "share of each task vector's numbers that trimming keeps", low=0, high=1)
    threshold: str = option(
        "global", "largest of the whole task vector, or of each tensor", choices=("global", "per_tensor")
    )
    zero_sign: str = option(
        "majority",
        "elected where the experts cancel out: the sign elected most often, + (as PEFT and mergekit do), or neither",
        choices=("majority", "positive", "drop"),
    )
    reduction: str = option("mean", "of the numbers that agree with the elected sign", choices=("mean", "sum"))
    grid: list[float] | None = option(None, "λ to choose from on validation; null: take scaling", low=-10, high=10)


@dataclass
class DareTaskArithmetic:
    """θ₀ + λ Σ m_t ⊙ τ_t / (1 − p): each number of a task vector is dropped with probability p, the rest rescaled"""

    name: str = "dare_task_arithmetic"
    scaling: float = option(0.7, "λ", low=-10, high=10)
    drop_rate: float = option(0.7, "p, the probability that a number is dropped", low=0, high=0.999)
    rescale: bool = option(True, "divide what is left by 1 − p")
    grid: list[float] | None = option(None, "λ to choose from on validation; null: take scaling", low=-10, high=10)


@dataclass
class DareTies(Ties):
    """TIES of task vectors of which each number is dropped with probability p and the rest rescaled"""

    name: str = "dare_ties"
    scaling: float = option(0.7, "λ", low=-10, high=10)
    density: float = option(
        0.2, "share of all numbers that trimming keeps after dropping; 1: no trimming, as in PEFT and mergekit",
        low=0, high=1,
    )  # fmt: skip
    drop_rate: float = option(0.7, "p, the probability that a number is dropped", low=0, high=0.999)
    rescale: bool = option(True, "divide what is left by 1 − p")


@dataclass
class Breadcrumbs:
    """θ₀ + λ Σ m_t ⊙ τ_t, where m_t leaves out each tensor's smallest and largest changes"""

    name: str = "breadcrumbs"
    scaling: float = option(0.3, "λ", low=-10, high=10)
    bottom: float = option(0.85, "share of each tensor's numbers dropped as the smallest", low=0, high=1)
    top: float = option(0.007, "share of each tensor's numbers dropped as the largest", low=0, high=1)
    grid: list[float] | None = option(None, "λ to choose from on validation; null: take scaling", low=-10, high=10)


@dataclass
class Twin:
    """θ_s + Σ w_t(x) v_t, merged anew for each input; v_t = sparsify(θ_t − θ_s)."""

    name: str = "twin"
    shared: Any = option({"name": "task_arithmetic"}, "the static method that makes the shared expert θ_s")


merge_methods.add("pretrained", Pretrained, "twin_merging.merging.averaging:pretrained")
merge_methods.add("finetuned", Finetuned, "twin_merging.merging.averaging:finetuned")
merge_methods.add("weight_averaging", WeightAveraging, "twin_merging.merging.averaging:weight_averaging")
merge_methods.add("task_arithmetic", TaskArithmetic, "twin_merging.merging.task_arithmetic:task_arithmetic")
merge_methods.add("ties", Ties, "twin_merging.merging.ties:ties")
merge_methods.add("dare_task_arithmetic", DareTaskArithmetic, "twin_merging.merging.dare:dare_task_arithmetic")
merge_methods.add("dare_ties", DareTies, "twin_merging.merging.dare:dare_ties")
merge_methods.add("breadcrumbs", Breadcrumbs, "twin_merging.merging.breadcrumbs:breadcrumbs")
merge_methods.add("twin", Twin, "twin_merging.merging.twin:exclusive_knowledge")
