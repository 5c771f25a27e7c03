"""Options of the merge methods that see data, and of joint training.

Some name in ``needs`` what is found out from data before they merge, and in ``grid_of`` the key that ``grid`` chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from twin_merging.config.option import TINY, option
from twin_merging.config.registries import merge_methods

INPUTS = ("test", "validation")


@dataclass
class Fisher:
    """Σ F_t θ_t / Σ F_t, entry by entry; F_t is the diagonal of expert t's Fisher information."""

    name: str = "fisher"
    rows: int = option(256, "validation rows a task that F is taken over, at most", low=1)
    labels: str = option(
        "expectation", "labels whose gradients are squared: all, by the expert's probabilities; drawn by them; the true ones",
        choices=("expectation", "sampled", "true"),
    )  # fmt: skip
    floor: float = option(1e-6, "the lowest F", low=TINY, high=1)
    needs: ClassVar[str] = "fisher"


@dataclass
class RegMean:
    """(Σ G_t)⁻¹ Σ G_t W_t for linear layers, G_t = XᵀX of their inputs; the mean of everything else."""

    name: str = "regmean"
    rows: int = option(1000, "training rows a task that G is taken over, at most", low=1)
    off_diagonal: float = option(0.9, "factor of the entries of G off its diagonal", low=0, high=1)
    grid: list[float] | None = option(
        None, "off_diagonal to choose from on validation; null: take off_diagonal", low=0, high=1
    )
    needs: ClassVar[str] = "gram"
    grid_of: ClassVar[str] = "off_diagonal"


@dataclass
class AdaMerging:
    """θ₀ + Σ λ_t τ_t, the λ learned by minimizing the entropy of the answers to inputs without labels."""

    name: str = "adamerging"
    granularity: str = option(
        "layer_wise", "a λ for each task, or for each task and tensor", choices=("task_wise", "layer_wise")
    )
    plus_plus: bool = option(False, "trim the task vectors first, and drop what has not the elected sign, as TIES does")
    density: float = option(0.2, "share of each task vector's numbers that trimming keeps", low=0, high=1)
    inputs: str = option("test", "the split whose inputs are seen; its labels never are", choices=INPUTS)
    init: float = option(0.3, "the first λ", low=-10, high=10)
    clamp: bool = option(False, "keep λ between 0 and 1, as the authors' code does")
    steps: int = option(500, "steps of Adam", low=1)
    lr: float = option(1e-3, "Adam learning rate", low=TINY, high=1)
    batch_size: int = option(16, "rows a task and step", low=1)
    rows_at_once: int = option(32, "rows of several tasks that go through the encoder together", low=1)
    needs: ClassVar[str] = "coefficients"


@dataclass
class Surgery:
    """f − W_up·ReLU(W_down·f) for each task on the features of a merged encoder, towards the expert's features."""

    name: str = "surgery"
    merge: Any = option({"name": "adamerging"}, "the static method that makes the encoder")
    inputs: str = option("test", "the split whose inputs are seen; its labels never are", choices=INPUTS)
    rank: int = option(16, "rows of W_down", low=1)
    steps: int = option(500, "steps of Adam", low=1)
    lr: float = option(1e-3, "Adam learning rate", low=TINY, high=1)
    batch_size: int = option(16, "rows a task and step", low=1)


@dataclass
class Multitask:
    """One model trained on all tasks at once by the options of ``finetune``: an encoder with a head a task, or a language model."""

    name: str = "multitask"


merge_methods.add("fisher", Fisher, "twin_merging.merging.fisher:fisher")
merge_methods.add("regmean", RegMean, "twin_merging.merging.regmean:regmean")
merge_methods.add("adamerging", AdaMerging, "twin_merging.merging.adamerging:adamerging")
merge_methods.add("surgery", Surgery, "twin_merging.merging.surgery:operate")
merge_methods.add("multitask", Multitask, "twin_merging.experts.multitask:train_jointly")
