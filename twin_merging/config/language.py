"""Options of tasks that a language model answers by text: backbone, tasks, fine-tuning, and who judges the answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from twin_merging.config.domains import LANGUAGE
from twin_merging.config.option import TINY, option
from twin_merging.config.registries import backbones, evaluations, finetunings, task_sources


@dataclass
class CausalLM:
    """A language model of the Hugging Face hub, of a folder or of the offline assets. All of it merges."""

    name: str = "causal_lm"
    pretrained: str = option("???", "asset:NAME, a folder, or a hub name")
    revision: str | None = option(None, "hub commit, branch or tag; a commit pins the weights")
    context: int | None = option(None, "tokens of a prompt and its answer, at most; null: the model's own", low=2)
    dtype: str = option(
        "float32", "of the weights; auto: as they were saved", choices=("float32", "bfloat16", "float16", "auto")
    )
    device_map: str | None = option(None, "auto spreads a model that answers over devices; null: device", choices=(
        None, "auto", "balanced", "balanced_low_0", "sequential"
    ))  # fmt: skip
    trust_remote_code: bool = option(False, "run modelling code that comes with the weights")
    domain: ClassVar[str] = LANGUAGE


@dataclass
class LearningCounts:
    """Rows that an expert and the router learn from, at most; null takes all there are. None of them is evaluated."""

    train: int | None = option(None, "rows to fine-tune on", low=1)
    validation: int | None = option(None, "rows for epochs and the router: cut from the same source", low=1)


@dataclass
class GenerativeTasks:
    """Tasks that are answered by text, as HELM asks them, from local files or the offline assets."""

    name: str = "generative"
    names: list[str] = option([], "which tasks, in this order")
    parts: dict[str, list[str]] | None = option(
        None, "by task, its subjects or categories that are asked and learned from; null: all that are there"
    )
    learn: dict[str, str] | None = option(None, "by task, what its expert learns from in place of its own rows: dolly")
    rows: LearningCounts = field(default_factory=LearningCounts)
    train_rows: dict[str, int] | None = option(None, "by task, in place of rows.train", low=1)
    shots: int = option(5, "solved rows in a prompt, at most", low=0)
    instances: int = option(100, "rows that are evaluated of each part, at most", low=1)
    article_words: int = option(512, "an article is cut to so many words; 512 are HELM's", low=1)
    split_seed: int = option(0, "seed of which rows are validation", low=0)
    unseen: list[str] = option([], "tasks that are evaluated though no expert of theirs is merged or routed to")
    domain: ClassVar[str] = LANGUAGE


@dataclass
class CausalFineTuning:
    """Fine-tune all parameters of a language model on prompts and their completions, whose loss alone counts.

    The epoch whose loss on validation rows is lowest is kept.
    """

    name: str = "causal_full"
    epochs: int = option(3, "passes over the training rows", low=1)
    lr: float = option(2e-5, "learning rate", low=TINY, high=1)
    batch_size: int = option(128, "rows a step", low=1)
    micro_batch: int = option(8, "rows that are in memory at once, of which gradients add up to a step's", low=1)
    group_by_length: bool = option(
        False, "rows of like length share a step: less padding, batches that are not drawn alike"
    )
    max_length: int = option(1024, "tokens of a row, at most; a longer one loses the beginning of its prompt", low=2)
    weight_decay: float = option(0.01, "AdamW weight decay", low=0, high=1)
    warmup: float = option(0.06, "share of the steps that warm up", low=0, high=1)
    scheduler: str = option("linear", "learning-rate schedule", choices=("linear", "cosine", "constant_with_warmup"))
    checkpointing: bool = option(False, "keep no activations but those between blocks: less memory, a third more time")
    accelerate: str | None = option(
        None,
        "a file that `accelerate config` wrote: several processes train (DDP, FSDP, DeepSpeed); null: this one does",
    )
    domain: ClassVar[str] = LANGUAGE


@dataclass
class CausalLora(CausalFineTuning):
    """Fine-tune low-rank adapters ΔW = (α/r)·BA on a language model's linear layers; the expert is the adapter."""

    name: str = "causal_lora"
    lr: float = option(2e-4, "learning rate", low=TINY, high=1)
    rank: int = option(32, "r", low=1)
    alpha: int = option(16, "α", low=1)
    dropout: float = option(0.05, "dropout before A", low=0, high=1)
    targets: str = option("all-linear", "all-linear, or a regular expression over module names")
    task_targets: dict[str, str] | None = option(None, "by task, in place of targets")
    quantize: str = option(
        "none", "the weights that do not learn: nf4 keeps them in 4 bits (QLoRA)", choices=("none", "nf4")
    )


@dataclass
class Native:
    """Raw and normalized scores of answers, by HELM's definitions."""

    name: str = "native"
    batch_size: int = option(16, "prompts that a static model answers at once", low=1)
    seed: int = option(0, "of answers that are drawn: the summaries", low=0, high=2**32 - 1)
    timing: int | None = option(
        None,
        "prompts on which seconds per 1000 items are measured, with θ₀ beside the model in memory; null: none",
        low=1,
    )
    domain: ClassVar[str] = LANGUAGE


@dataclass
class Helm(Native):
    """The same, with HELM itself as the judge."""

    name: str = "helm"


backbones.add("causal_lm", CausalLM, "twin_merging.backbones.causal_lm:CausalLMBackbone")
task_sources.add("generative", GenerativeTasks, "twin_merging.tasks.generative_source:Generative")
finetunings.add("causal_full", CausalFineTuning, "twin_merging.experts.completions:causal_fine_tuning")
finetunings.add("causal_lora", CausalLora, "twin_merging.experts.completions:causal_lora")
evaluations.add("native", Native, "twin_merging.evaluation.judges:native")
evaluations.add("helm", Helm, "twin_merging.evaluation.judges:helm")
