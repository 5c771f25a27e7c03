"""The schema: every config key with its type, default, unit and range, and the components that each group knows.

``configs/GROUP/OPTION.yaml`` sets values; this file says which keys exist and what they may be. Nothing heavy is
imported here, so a configuration is checked before any work, and before torch, is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from twin_merging.registry import Registry


def option(
    default: Any, help: str, *, low: float | None = None, high: float | None = None, choices: tuple | None = None
) -> Any:
    """A config key: its default, what it means, and the closed range or the choices that its value must be in."""
    metadata = {"help": help, "low": low, "high": high, "choices": choices}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


TINY = 1e-12  # the lowest value of what must be positive

# --- backbone ---------------------------------------------------------------------------------------------------------


@dataclass
class SequenceClassifier:
    """An encoder of the Hugging Face hub, of a folder or of the offline assets, with one head a task."""

    name: str = "sequence_classifier"
    pretrained: str = option("???", "asset:NAME, a folder, or a hub name")
    revision: str | None = option(None, "hub commit, branch or tag; a commit pins the weights")
    max_length: int = option(128, "tokens an input is cut to", low=2)
    trust_remote_code: bool = option(False, "run modelling code that comes with the weights")


# --- tasks ------------------------------------------------------------------------------------------------------------


@dataclass
class Rows:
    """Rows of each split, at most; null takes all there are. What a source does not split itself is split by seed."""

    train: int | None = option(None, "rows to fine-tune on", low=1)
    validation: int | None = option(None, "rows of the training set held out: epochs, λ and router", low=1)
    test: int | None = option(None, "rows to evaluate on", low=1)


@dataclass
class Tasks:
    """Tasks by name from one source."""

    name: str = "offline_text"
    names: list[str] = option([], "which tasks, in this order")
    rows: Rows = field(default_factory=Rows)
    limit: int | None = option(None, "rows of any split, at most: for a quick look", low=1)
    split_seed: int = option(0, "seed of the sampling and of the splits", low=0)


# --- experts ----------------------------------------------------------------------------------------------------------


@dataclass
class FullFineTuning:
    """Fine-tune all parameters; the epoch that is best on validation is kept."""

    name: str = "full"
    epochs: int = option(10, "passes over the training rows", low=1)
    lr: float = option(1e-5, "learning rate of the encoder", low=TINY, high=1)
    head_lr: float | None = option(None, "learning rate of the new head; null: lr", low=TINY, high=1)
    batch_size: int = option(64, "rows a step", low=1)
    weight_decay: float = option(0.01, "AdamW weight decay", low=0, high=1)
    warmup: float = option(0.06, "share of the steps that warm up", low=0, high=1)
    backbone_dropout: float | None = option(
        None, "dropout in the backbone while training; null: its own", low=0, high=1
    )
    scheduler: str = option("linear", "learning-rate schedule", choices=("linear", "cosine", "constant_with_warmup"))


@dataclass
class LoraFineTuning(FullFineTuning):
    """Fine-tune low-rank adapters ΔW = (α/r)·BA on the linear layers; the head is trained in full."""

    name: str = "lora"
    rank: int = option(32, "r", low=1)
    alpha: int = option(16, "α", low=1)
    dropout: float = option(0.05, "dropout before A", low=0, high=1)
    targets: str = option("all-linear", "all-linear, or a regular expression over module names")


@dataclass
class Experts:
    """Where experts come from: fine-tuned here, or published checkpoints."""

    source: str | None = option(None, "folder or hub name with {task} in it; null: fine-tune here")


@dataclass
class Parameters:
    """What merges: encoder parameters whose name some ``include`` pattern matches and no ``exclude`` pattern does."""

    include: list[str] = option([".*"], "regular expressions over encoder parameter names")
    exclude: list[str] = option([], "the same; the authors' GLUE code has .*bias.*")


# --- merging ----------------------------------------------------------------------------------------------------------


@dataclass
class Pretrained:
    """θ₀: the encoder before fine-tuning, with the experts' heads."""

    name: str = "pretrained"


@dataclass
class Finetuned:
    """θ_t for task t: T separate encoders, the reference of every normalized score."""

    name: str = "finetuned"


@dataclass
class WeightAveraging:
    """(1/T) Σ θ_t"""

    name: str = "weight_averaging"


@dataclass
class TaskArithmetic:
    """θ₀ + λ Σ τ_t"""

    name: str = "task_arithmetic"
    scaling: float = option(0.3, "λ", low=-10, high=10)
    grid: list[float] | None = option(None, "λ to choose from on validation; null: take scaling", low=-10, high=10)


@dataclass
class Twin:
    """θ_s + Σ w_t(x) v_t, merged anew for each input; v_t = sparsify(θ_t − θ_s)."""

    name: str = "twin"
    shared: Any = option({"name": "task_arithmetic"}, "the static method that makes the shared expert θ_s")


# --- sparsifier -------------------------------------------------------------------------------------------------------


@dataclass
class Svd:
    """Keep the top singular triplets of every 2-D matrix; 1-D tensors are kept whole.

    At most one of the three is set; with none it is rank 16.
    """

    name: str = "svd"
    rank: int | None = option(None, "triplets a matrix", low=1)
    fraction: float | None = option(None, "triplets as a share of min(m, n)", low=TINY, high=1)
    budget: float | None = option(None, "stored numbers as a share of the matrix's m·n", low=TINY, high=1)


@dataclass
class NoSparsifier:
    """Keep v_t whole."""

    name: str = "none"


# --- router -----------------------------------------------------------------------------------------------------------


@dataclass
class MlpRouter:
    """softmax(R(mean of the last layer's token states)): three linear layers d → 2d → 2d → T."""

    name: str = "mlp"
    epochs: int = option(10, "passes over the router's rows", low=1)
    lr: float = option(5e-4, "Adam learning rate", low=TINY, high=1)
    batch_size: int = option(64, "rows a step", low=2)
    dropout: float = option(0.5, "dropout between the layers", low=0, high=1)
    rows: int | None = option(1000, "validation rows a task, at most", low=10)
    holdout: float = option(0.2, "share of those rows kept for choosing epoch and temperature", low=0.05, high=0.5)
    layer: int = option(
        -1, "layer whose mean token states it reads: -1 the last (the paper's), 0 the embeddings", low=-1
    )
    temperature: float | None = option(1.0, "softmax temperature; null: calibrate on the holdout", low=TINY, high=100)


@dataclass
class OracleRouter:
    """One-hot on the true task: what a perfect router would give. Needs the task, so it is a bound, not a method."""

    name: str = "oracle"


# --- inference, evaluation, tracker, paths ----------------------------------------------------------------------------


@dataclass
class Exact:
    """Exact weights for each example, a batch in one pass."""

    name: str = "exact"
    batch_size: int = option(64, "rows a forward pass", low=1)


@dataclass
class Scores:
    """Raw and normalized scores on the test split."""

    name: str = "scores"
    heads: str = option(
        "oracle", "whose head answers: the true task's, or the router's top task's", choices=("oracle", "routed")
    )
    batch_size: int = option(64, "rows a forward pass of a static model", low=1)


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


# --- the registries ---------------------------------------------------------------------------------------------------

backbones = Registry("backbone")
task_sources = Registry("tasks")
merge_methods = Registry("merge_method")
sparsifiers = Registry("sparsifier")
routers = Registry("router")
finetunings = Registry("finetune")
inferences = Registry("inference")
evaluations = Registry("evaluation")
trackers = Registry("tracker")
path_layouts = Registry("paths")

REGISTRIES = {
    registry.group: registry
    for registry in (
        backbones, task_sources, merge_methods, sparsifiers, routers, finetunings, inferences, evaluations, trackers,
        path_layouts,
    )
}  # fmt: skip

backbones.add(
    "sequence_classifier", SequenceClassifier, "twin_merging.backbones.sequence_classifier:SequenceClassifierBackbone"
)
task_sources.add("offline_text", Tasks, "twin_merging.tasks.offline_text:OfflineText")
task_sources.add("glue", Tasks, "twin_merging.tasks.glue:Glue")
task_sources.add("local_text", Tasks, "twin_merging.tasks.local_text:LocalText")
finetunings.add("full", FullFineTuning, "twin_merging.experts.fine_tuning:full_fine_tuning")
finetunings.add("lora", LoraFineTuning, "twin_merging.experts.lora:lora_fine_tuning")
merge_methods.add("pretrained", Pretrained, "twin_merging.merging.averaging:pretrained")
merge_methods.add("finetuned", Finetuned, "twin_merging.merging.averaging:finetuned")
merge_methods.add("weight_averaging", WeightAveraging, "twin_merging.merging.averaging:weight_averaging")
merge_methods.add("task_arithmetic", TaskArithmetic, "twin_merging.merging.task_arithmetic:task_arithmetic")
merge_methods.add("twin", Twin, "twin_merging.merging.twin:exclusive_knowledge")
sparsifiers.add("svd", Svd, "twin_merging.sparsifiers.svd:truncate")
sparsifiers.add("none", NoSparsifier, "twin_merging.sparsifiers.none:keep")
routers.add("mlp", MlpRouter, "twin_merging.routers.mlp:MlpRouter")
routers.add("oracle", OracleRouter, "twin_merging.routers.oracle:oracle_weights")
inferences.add("exact", Exact, "twin_merging.dynamic.model:TwinMergedModel")
evaluations.add("scores", Scores, "twin_merging.evaluation.scoring:score")
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
    exp: str = option("custom", "name of the experiment: the folder under outputs/")
    seed: int = option(0, "seed of training, merging and routing", low=0, high=2**32 - 1)
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = option("auto", "auto: bf16 where the processor has it", choices=("auto", "fp32", "bf16"))
    cache: str = option(
        "write", "off: no cache; read: add nothing to it; write: read and add", choices=("off", "read", "write")
    )
    plugins: list[str] = option([], "modules to import that register components")
