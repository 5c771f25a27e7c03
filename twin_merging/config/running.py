"""Options of routing, inference, evaluation, tracking and folders; and the whole of one job."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from twin_merging.config.experts import Experts, Parameters
from twin_merging.config.option import TINY, option
from twin_merging.config.registries import evaluations, inferences, path_layouts, routers, trackers


@dataclass
class MlpRouter:
    """softmax(R(mean of the last layer's token states)): three linear layers d → 2d → 2d → T."""

    name: str = "mlp"
    epochs: int = option(10, "passes over the router's rows", low=1)
    lr: float = option(5e-4, "Adam learning rate", low=TINY, high=1)
    batch_size: int = option(64, "rows a step", low=2)
    dropout: float = option(0.5, "dropout between the layers", low=0, high=1)
    source: str = option(
        "validation", "rows it is trained on: held out from training, or those that the experts were trained on",
        choices=("validation", "train"),
    )  # fmt: skip
    rows: int | None = option(1000, "of those rows, at most so many a task", low=10)
    holdout: float = option(0.2, "share of those rows kept for choosing epoch and temperature", low=0.05, high=0.5)
    selection: str = option(
        "holdout", "epoch that is kept: the likeliest on those rows, or the last", choices=("holdout", "last")
    )
    layer: int = option(
        -1,
        "layer whose token states it reads: -1 the last (the paper's); 0 the embeddings, which runs no block",
        low=-1,
    )
    token: str = option(
        "mean", "their mean over the input's tokens (the paper's), or the last token's of a language model's prompt",
        choices=("mean", "last"),
    )  # fmt: skip
    temperature: float | None = option(1.0, "softmax temperature; null: calibrate on the holdout", low=TINY, high=100)


@dataclass
class TfidfRouter:
    """softmax(W f + b), f the tf-idf of the input's tokens: logistic regression, without a forward pass."""

    name: str = "tfidf"
    sublinear: bool = option(True, "1 + ln of a token's count in place of its count")
    grid: list[float] = option(
        [1.0, 10.0, 100.0, 1000.0], "C, inverse strength of the L2 penalty, to choose from on the holdout", low=TINY
    )
    source: str = option(
        "validation", "rows it is trained on: held out from training, or those that the experts were trained on",
        choices=("validation", "train"),
    )  # fmt: skip
    rows: int | None = option(1000, "of those rows, at most so many a task", low=10)
    holdout: float = option(0.2, "share of those rows kept for choosing C and temperature", low=0.05, high=0.5)
    temperature: float | None = option(None, "softmax temperature; null: calibrate on the holdout", low=TINY, high=100)


@dataclass
class OracleRouter:
    """One-hot on the true task: what a perfect router would give. Needs the task, so it is a bound, not a method."""

    name: str = "oracle"


@dataclass
class Exact:
    """Exact weights for each example, a batch in one pass."""

    name: str = "exact"
    batch_size: int = option(64, "rows a forward pass", low=1)
    plan: str = option(
        "auto", "how each layer computes: the fastest by its cost, or the one named where it is possible",
        choices=("auto", "factored", "gathered", "grouped", "dense"),
    )  # fmt: skip
    kernels: str = option(
        "auto", "whose products of matrices: the faster of torch's own and oneDNN's, or torch's own",
        choices=("auto", "stock"),
    )  # fmt: skip
    memory: str = option("2GB", "that dense deltas made of factors may take up in all; without room they are made anew")
    top_k: int | None = option(None, "experts that an example keeps at most; null: all", low=1)
    mass: float | None = option(
        None, "share of w(x) that the experts it keeps have to reach; null: all", low=TINY, high=1
    )
    lower: str = option(
        "mixed", "what is below the layer that the router reads: mixed as the rest, or the shared expert's, in one pass",
        choices=("mixed", "shared"),
    )  # fmt: skip
    explain: bool = option(False, "print each layer's plan and its expected cost")


@dataclass
class GroupWise(Exact):
    """One merged model for a group of rows that the router answers alike (appendix E): nearer to static, and worse."""

    name: str = "group_wise"
    groups: int = option(20, "clusters of the rows of each top expert", low=1)


@dataclass
class Scores:
    """Raw and normalized scores on the test split."""

    name: str = "scores"
    heads: str = option(
        "oracle", "whose head answers: the true task's, or the router's top task's", choices=("oracle", "routed")
    )
    batch_size: int = option(64, "rows a forward pass of a static model", low=1)
    unseen_head: str = option(
        "expert", "who answers for tasks.unseen: the head fine-tuned with the task's own expert (the authors' way), or one "
        "trained on frozen features of the shared encoder", choices=("expert", "frozen"),
    )  # fmt: skip
    excluded: str = option(
        "pretrained", "whose values parameters that do not merge have: θ₀'s, or the true task's expert's, which leaks the task",
        choices=("pretrained", "task"),
    )  # fmt: skip
    timing: int | None = option(
        64, "test rows on which seconds per 1000 items are measured, beside a static model's; null: none", low=1
    )


@dataclass
class TaskUnknown(Scores):
    """Scores, and one stream of all tasks' test rows whose tasks are unknown: what routing costs, and how sure it is."""

    name: str = "task_unknown"
    heads: str = option(
        "routed",
        "whose head answers in the table of scores; the stream always compares both",
        choices=("oracle", "routed"),
    )
    noise: list[float] = option(
        [0.0, 0.1, 0.2, 0.4], "shares of the router's rows whose task label is made wrong, a router each", low=0, high=1
    )
    new_domain: bool = option(True, "leave each task out of a router's training and see where its rows go")


@dataclass
class Tracker:
    """Where scalars, the table and the pictures go besides results.json."""

    name: str = "jsonl"
    project: str = option("twin_merging", "project that runs are filed under")
    entity: str | None = option(None, "wandb user or team")
    mode: str = option("offline", "wandb mode; online needs a login", choices=("offline", "online", "disabled"))


@dataclass
class Paths:
    """Folders; relative ones start where the command was started."""

    name: str = "default"
    outputs: str = option("outputs", "results, tables, figures")
    cache: str = option("outputs/cache", "stages' artefacts")
    assets: str | None = option(None, "offline models and data; null: the user's cache folder")
    data: str | None = option(None, "a local mirror of datasets")
    mirror: str | None = option(
        None, "what scripts/mirror.py fetched: models, assets and rows come from it, without network"
    )


@dataclass
class Sweep:
    """What a sweep does with an earlier one of the same jobs."""

    resume: bool = option(False, "go on with the sweep of the same jobs that was begun: what is done there is skipped")


routers.add("mlp", MlpRouter, "twin_merging.routers.mlp:MlpRouter")
routers.add("tfidf", TfidfRouter, "twin_merging.routers.tfidf:TfidfRouter")
routers.add("oracle", OracleRouter, "twin_merging.routers.oracle:oracle_weights")
inferences.add("exact", Exact, "twin_merging.dynamic.model:TwinMergedModel")
inferences.add("group_wise", GroupWise, "twin_merging.dynamic.model:TwinMergedModel")
evaluations.add("scores", Scores, "twin_merging.evaluation.scoring:score")
evaluations.add("task_unknown", TaskUnknown, "twin_merging.evaluation.scoring:score")
trackers.add("none", Tracker, "twin_merging.trackers:NoTracker")
trackers.add("jsonl", Tracker, "twin_merging.trackers:JsonlTracker")
trackers.add("wandb", Tracker, "twin_merging.trackers:WandbTracker")
trackers.add("tensorboard", Tracker, "twin_merging.trackers:TensorboardTracker")
path_layouts.add("default", Paths, "twin_merging.config:Paths")


@dataclass
class RunConfig:
    """One job: the groups' components with their options, and what belongs to no group."""

    backbone: Any
    tasks: Any
    merge_method: Any
    sparsifier: Any
    router: Any
    finetune: Any
    inference: Any
    evaluation: Any
    tracker: Any
    paths: Any
    experts: Experts = field(default_factory=Experts)
    parameters: Parameters = field(default_factory=Parameters)
    sweep: Sweep = field(default_factory=Sweep)
    exp: str = option("custom", "name of the experiment: the folder under outputs/")
    seed: int = option(0, "seed of training, merging and routing", low=0, high=2**32 - 1)
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = option("auto", "auto: bf16 where the processor has it", choices=("auto", "fp32", "bf16"))
    cache: str = option(
        "write", "off: no cache; read: add nothing to it; write: read and add", choices=("off", "read", "write")
    )
    plugins: list[str] = option([], "modules to import that register components")

    @property
    def heads(self) -> str:
        """Whose heads answer: ``oracle``, ``routed``, or ``none`` where answers are texts."""
        return getattr(self.evaluation, "heads", "none")

    @property
    def training_seed(self) -> int:
        """The seed of fine-tuning, alone or jointly: ``experts.seed``, else ``seed``."""
        return self.seed if self.experts.seed is None else self.experts.seed
