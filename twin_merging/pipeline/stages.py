"""The stages of one job and how they hang together. Describing them computes nothing; the cache computes what it lacks."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

from twin_merging.backbones.sources import has_running_statistics
from twin_merging.config import (
    Rows,
    RunConfig,
    backbones,
    evaluations,
    inferences,
    merge_methods,
    task_sources,
)
from twin_merging.experts.published import source_of
from twin_merging.merging.method import can_draw
from twin_merging.pipeline import (
    batchnorm_stages,
    data_stages,
    exclusive_stages,
    expert_stages,
    routing_stages,
    token_stages,
    unseen_stages,
)
from twin_merging.pipeline.cache import Cache
from twin_merging.pipeline.graph import Graph
from twin_merging.pipeline.labels import describe, name_of
from twin_merging.pipeline.stage import Stage, by, determining
from twin_merging.tasks.base import TEST
from twin_merging.validation import to_plain

ENCODER = "encoder.safetensors"  # the file of an artefact that is one encoder
STATIC_NEEDS_NO_MERGE = "pretrained"


class Stages(Graph):
    """The graph of one job's stages.

    data ─► expert ─► merge ─► exclusive ─► router ─► dynamic ─► result, with ``encode`` wherever a static encoder's
    features of a split are needed.

    Args:
        run: the job's configuration.
        cache: where artefacts are found and put.
    """

    def __init__(self, run: RunConfig, cache: Cache):
        super().__init__(run, cache)
        self.is_surgery = hasattr(self.method, "merge")
        self.is_elected = self.method.name == "emr"
        self.is_dynamic = self.is_twin or self.is_elected

    @cached_property
    def has_statistics(self) -> bool:
        """Whether the backbone has BatchNorm, whose running statistics a merged encoder needs of its own."""
        return has_running_statistics(self.backbone_source.folder)

    @property
    def reading(self) -> dict[str, Any]:
        """The backbone's options that determine what it reads of a row."""
        backbone = self.run.backbone
        return {key: getattr(backbone, key) for key in ("max_length", "image_size") if hasattr(backbone, key)}

    def heads_from(self, *names: str) -> dict[str, Any]:
        """The backbone's options that determine the heads that these tasks start with: none where they are drawn."""
        if not hasattr(self.run.backbone, "templates"):
            return {}
        from twin_merging.backbones.zero_shot import templates_of

        return {"templates": {name: templates_of(name, self.run.backbone.templates) for name in names}}

    def data(self, name: str) -> Stage:
        """A task's three splits."""
        options = {
            "source": self.task_source.identity(name), "code": task_sources[self.run.tasks.name].code_hash(), "name": name, "rows": to_plain(self.rows(name)),
            "limit": self.run.tasks.limit, "seed": self.run.tasks.split_seed, "order": self.run.tasks.order,
        }  # fmt: skip
        if hasattr(self.run.tasks, "corrupt"):
            options["corrupt"] = self.run.tasks.corrupt
        if getattr(self.run.tasks, "held_out", None) is not None:
            options["held_out"] = self.run.tasks.held_out
        return Stage("data", name, options, (), by("compute", "data", self, name))

    def rows(self, name: str) -> Rows:
        """How many rows of each split a task has at most."""
        tasks = self.run.tasks
        return replace(tasks.rows, train=(tasks.train_rows or {}).get(name, tasks.rows.train))

    @cached_property
    def base(self) -> Stage:
        """θ₀: the encoder before fine-tuning."""
        options = {
            "source": self.backbone_source.identity,
            "class": self.run.backbone.name,
            "code": backbones[self.run.backbone.name].code_hash(),
        }
        return Stage("base", name_of(self.run.backbone), options, (), by("compute", "base", self))

    def expert(self, name: str) -> Stage:
        """θ_t and its head: fine-tuned here, or imported from where ``experts`` says."""
        where = source_of(self.run.experts, name)
        return expert_stages.trained(self, name) if where is None else expert_stages.imported(self, name, where)

    @cached_property
    def experts(self) -> list[Stage]:
        """All experts, in the order of the tasks."""
        return [self.expert(name) for name in self.names]

    @property
    def prepared(self) -> list[Stage]:
        """Data, θ₀, and experts that are not trained here, those of unseen tasks too if their heads are wanted."""
        names = self.names if unseen_stages.is_frozen(self) else self.evaluated
        imported = [self.expert(name) for name in names if source_of(self.run.experts, name) is not None]
        return [*map(self.data, self.evaluated), self.base, *imported]

    def merged(self, method: Any) -> Stage:
        """A static method's encoder; of ``pretrained`` it is θ₀ itself."""
        if method.name == STATIC_NEEDS_NO_MERGE:
            return self.base
        component = merge_methods[method.name]
        options = {
            "method": to_plain(method),
            "code": component.code_hash(),
            "parameters": to_plain(self.run.parameters),
        }
        if can_draw(component.load()):  # seeds of a sweep that change nothing share the merge and its grid
            options["seed"] = self.run.seed
        inputs: tuple[Stage, ...] = (self.base, *self.experts, *data_stages.statistics(self, method))
        seen = batchnorm_stages.data(self)
        options |= batchnorm_stages.determining(self)
        if getattr(method, "grid", None):
            options["excluded"] = self.run.evaluation.excluded
            options |= {"precision": self.precision, **self.reading}
            seen = tuple(map(self.data, self.names))
        else:
            options["method"] = to_plain(replace(method, grid=None) if hasattr(method, "grid") else method)
        return Stage("merge", method.name, options, (*inputs, *seen), by("compute", "merged", self, method))

    @cached_property
    def shared(self) -> Stage:
        """The one encoder whose states the router reads: twin's shared expert, a static method's own, else θ₀."""
        if self.is_joint:
            return data_stages.joint(self)
        return self.base if self.is_elected or self.is_ensemble else self.merged(self.static_method)

    @property
    def static_method(self) -> Any:
        """What merges into one encoder: a part of twin and of surgery, else the method itself."""
        return self.method.shared if self.is_twin else self.method.merge if self.is_surgery else self.method

    @cached_property
    def exclusive(self) -> Stage:
        """v_t of every task, compressed; of emr, what all tasks share of their τ_t, and which of it is whose."""
        return exclusive_stages.elected(self) if self.is_elected else exclusive_stages.compressed(self)

    @property
    def knowledge(self) -> tuple[Stage, ...]:
        """All that a dynamic model is made of beside its shared encoder."""
        return (self.exclusive, *batchnorm_stages.exclusive(self))

    def encoded(
        self, encoder: Stage, split: str, names: list[str], label: str, layer: int = -1, for_router: bool = False,
        rows: int | None = None, own: bool = False,
    ) -> Stage:  # fmt: skip
        """A static encoder's features of one split of some tasks; those for the router, or it alone, come from ``layer``.

        Args:
            rows: of each task at most, the first.
            own: each task's rows are seen with its expert's values of what does not merge.
        """
        options = {
            "split": split, "precision": self.precision, **self.reading, "layer": layer,
        }  # fmt: skip
        if for_router:
            options["for_router"] = True
        if rows is not None:
            options["rows"] = rows
        inputs: tuple[Stage, ...] = (encoder, *(self.data(name) for name in names))
        if own:
            options |= {"parameters": to_plain(self.run.parameters), **batchnorm_stages.determining(self)}
            inputs = (*inputs, *self.experts, *batchnorm_stages.data(self))
        load = by("compute", "encoded", self, encoder, split, names, label, layer, for_router, rows, own)
        return Stage("encode", f"{split} rows by {label}", options, inputs, load)

    def encoded_by_expert(self, index: int, split: str = TEST) -> Stage:
        """An expert's features of its own rows; of test rows they are the reference of normalized scores."""
        name = self.names[index]
        return self.encoded(self.experts[index], split, [name], f"the {name} expert")

    def encoded_by_shared(self, split: str, own: bool = False) -> Stage:
        """The shared encoder's features of all tasks."""
        layer = getattr(self.run.router, "layer", -1)
        names = self.evaluated if split == TEST else self.names
        return self.encoded(self.shared, split, names, f"the {self.shared.label} encoder", layer, own=own)

    @property
    def answers_with_own(self) -> bool:
        """Whether what does not merge has the values of the true task's expert when rows are answered."""
        return self.run.evaluation.excluded == "task"

    @cached_property
    def router(self) -> Stage:
        """A trained router."""
        return routing_stages.router(self)

    @property
    def trains_router(self) -> bool:
        """Whether this job needs a trained router."""
        return self.run.router.name != "oracle" and (self.is_dynamic or self.run.evaluation.heads == "routed")

    @property
    def routing(self) -> tuple[Stage, ...]:
        """What gives w(x) of test rows: a trained router and the features, if any, that it reads. Empty for the oracle."""
        return (self.router, *routing_stages.read(self, TEST)) if self.trains_router else ()

    @cached_property
    def dynamic(self) -> Stage:
        """Features of test rows under each row's own merged weights."""
        options = {
            "inference": determining(self.run.inference), "code": inferences[self.run.inference.name].code_hash(), "router": self.run.router.name, "precision": self.precision,
            **self.reading, "layer": getattr(self.run.router, "layer", None),
        }  # fmt: skip
        inputs = (self.shared, *self.knowledge, *self.routing, *(self.data(name) for name in self.evaluated))
        if self.answers_with_own:
            options["parameters"] = to_plain(self.run.parameters)
            inputs = (*inputs, *self.experts)
        load = by("compute", "dynamic", self)
        return Stage("dynamic", "test rows, merged anew for each", options, inputs, load, version=2)

    def answered(self, heads: str) -> list[Stage]:
        """The stages whose features of test rows these heads answer from: with ``routed`` ones, experts are routed to as well."""
        if self.is_dynamic:
            return [self.dynamic]
        if self.is_ensemble:
            return [routing_stages.chosen(self)] if heads == "routed" else self.references
        return [self.encoded_by_shared(TEST, self.answers_with_own)]

    @property
    def references(self) -> list[Stage]:
        """The experts' features of their own test rows, which normalized scores refer to."""
        return [self.encoded_by_expert(index) for index in range(len(self.names))]

    @property
    def learned(self) -> tuple[Stage, ...]:
        """What is learned of inputs beside the encoder: surgery's adapters, joint training's heads, or each expert's statistics."""
        if self.is_surgery:
            return (data_stages.adapters(self),)
        if self.is_dynamic:
            return batchnorm_stages.exclusive(self)
        return (data_stages.joint(self),) if self.is_joint else ()

    @cached_property
    def result(self) -> Stage:
        """Scores, bytes, routing and choices of the job."""
        answered = self.answered(self.run.evaluation.heads)
        inputs = (
            *self.experts, *self.references, *answered, *self.routing, *self.learned, *unseen_stages.needed(self),
            *token_stages.needed(self),
        )  # fmt: skip
        options = {
            "method": to_plain(self.method),
            "sparsifier": describe(self.run.sparsifier),
            "evaluation": unseen_stages.determining(self, determining(self.run.evaluation)),
            "code": evaluations[self.run.evaluation.name].code_hash(),
        }
        label = f"{self.label}, {self.run.evaluation.heads} heads"
        return Stage("result", label, options, inputs, by("result", "result", self), version=4)
