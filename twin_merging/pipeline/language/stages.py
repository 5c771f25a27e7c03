"""The stages of one job of a language model. Describing them computes nothing; the cache computes what it lacks."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

from twin_merging.config import (
    Svd,
    backbones,
    evaluations,
    finetunings,
    inferences,
    merge_methods,
    routers,
    sparsifiers,
)
from twin_merging.experts.published import located, source_of
from twin_merging.merging.method import can_draw
from twin_merging.pipeline.exclusive_stages import shared_rank
from twin_merging.pipeline.graph import Graph
from twin_merging.pipeline.labels import describe
from twin_merging.pipeline.stage import Stage, by, determining
from twin_merging.tasks.base import TEST
from twin_merging.validation import to_plain


class LanguageStages(Graph):
    """The graph of one job's stages.

    data ─► expert (or multitask) ─► merge ─► exclusive ─► router ─► answer ─► marks ─► result. Data are the rows that are learned from and,
    apart, the exam. θ₀ is read from its folder, and what is merged holds the tensors that differ from it.
    """

    # --- data and models ----------------------------------------------------------------------------------------------

    def learned(self, name: str) -> Stage:
        """The rows that a task's expert and the router learn from, in two splits."""
        tasks = self.run.tasks
        options = {
            "source": self.task_source.learning_identity(name), "name": name, "rows": to_plain(self.task_source.rows(name)), "seed": tasks.split_seed,
        }  # fmt: skip
        return Stage("data", f"{name}, to learn from", options, (), by("language.data", "learned", self, name))

    def exam(self, name: str) -> Stage:
        """What is asked of a task, cut to the model's context by its tokenizer."""
        tasks = self.run.tasks
        options = {
            "source": self.task_source.exam_identity(name), "shots": tasks.shots, "instances": tasks.instances,
            "context": self.run.backbone.context,
        }  # fmt: skip
        return Stage("data", f"{name}, exam", options, (self.base,), by("language.data", "exam", self, name))

    @cached_property
    def base(self) -> Stage:
        """θ₀ and its tokenizer: which they are, since they are read where they lie."""
        backbone = self.run.backbone
        options = {
            "source": self.backbone_source.identity,
            "class": backbone.name,
            "code": backbones[backbone.name].code_hash(),
        }
        return Stage("base", backbone.pretrained, options, (), by("language.data", "base", self))

    def expert(self, name: str) -> Stage:
        """θ_t: an adapter or a whole model, fine-tuned here or imported."""
        run, where = self.run, source_of(self.run.experts, name)
        if where is not None:
            key = f"experts.sources.{name}" if name in (run.experts.sources or {}) else "experts.source"
            source = located(where, self.asset_folder, key, self.mirror)
            load = by("language.data", "imported_expert", self, source)
            return Stage("expert", f"{name} from {where}", {"source": source.identity}, (self.base,), load)
        load = by("language.data", "expert", self, name)
        return Stage("expert", name, self._tuning(name), (self.base, self.learned(name)), load)

    @cached_property
    def experts(self) -> list[Stage]:
        """All experts, in the order of the tasks."""
        return [self.expert(name) for name in self.names]

    @cached_property
    def joint(self) -> Stage:
        """One expert of all tasks, fine-tuned on the union of their rows."""
        inputs = (self.base, *map(self.learned, self.names))
        return Stage("multitask", "all tasks", self._tuning(None), inputs, by("language.data", "joint", self))

    @property
    def prepared(self) -> list[Stage]:
        """Rows, θ₀, exams, and experts that are not trained here."""
        imported = [self.expert(name) for name in self.evaluated if source_of(self.run.experts, name) is not None]
        return [*map(self.learned, self.evaluated), self.base, *map(self.exam, self.evaluated), *imported]

    def tuning_of(self, name: str | None) -> Any:
        """``finetune`` of one task, or of all at once: with that task's own targets."""
        options = self.run.finetune
        own = (getattr(options, "task_targets", None) or {}).get(name)
        return options if own is None else replace(options, targets=own)

    def _tuning(self, name: str | None) -> dict[str, Any]:
        run, options = self.run, to_plain(self.tuning_of(name))
        options.pop("task_targets", None)  # of which this task's are in ``targets``
        file = options.pop("accelerate", None)
        together = {} if file is None else {"processes": self._processes(file)}
        return {
            "finetune": options, **together, "code": finetunings[run.finetune.name].code_hash(), "seed": run.training_seed,
            **self._computing,
        }  # fmt: skip

    def _processes(self, file: str) -> int:
        from twin_merging.experts.processes import settings_of
        from twin_merging.pipeline.environment import resolve_device

        return settings_of(file, resolve_device(self.run.device).type)["num_processes"]

    @property
    def _computing(self) -> dict[str, Any]:
        """What numbers are computed in."""
        return {"precision": self.precision, "dtype": self.run.backbone.dtype}

    # --- merging ------------------------------------------------------------------------------------------------------

    @cached_property
    def shared(self) -> Stage:
        """The one model whose states the router reads: twin's shared expert, or a static method's own; else θ₀."""
        method = self.method.shared if self.is_twin else self.method
        if self.is_ensemble or self.is_joint or method.name == "pretrained":
            return self.base
        component = merge_methods[method.name]
        options: dict[str, Any] = {"method": to_plain(method), "code": component.code_hash(), **self._merging}
        inputs: tuple[Stage, ...] = (self.base, *self.experts)
        if getattr(method, "grid", None):
            options |= {**self._computing, "max_length": self.run.finetune.max_length}
            inputs = (*inputs, *map(self.learned, self.names))
        if can_draw(component.load()):
            options["seed"] = self.run.seed
        load = by("language.merging", "merged", self, method)
        return Stage("merge", method.name, options, inputs, load, version=4)

    @cached_property
    def exclusive(self) -> Stage:
        """v_t of every task, compressed."""
        component = sparsifiers[self.run.sparsifier.name]
        options = {"sparsifier": to_plain(self.run.sparsifier), "code": component.code_hash(), **self._merging}
        if can_draw(component.load()):
            options["seed"] = self.run.seed
        inputs = (self.base, *self.experts, self.shared)
        load = by("language.merging", "exclusive", self)
        return Stage("exclusive", describe(self.run.sparsifier), options, inputs, load)

    def basis(self) -> Stage:
        """Singular vectors of dense matrices, where factors of adapters do not suffice."""
        svd = self.run.sparsifier
        assert isinstance(svd, Svd)
        cap = shared_rank(svd)
        options = {"cap": cap, "solver": svd.solver, "code": sparsifiers[svd.name].code_hash(), **self._merging}
        label = f"singular vectors, {'all' if cap is None else cap} a matrix"
        inputs = (self.base, *self.experts, self.shared)
        return Stage("basis", label, options, inputs, by("language.merging", "basis", self))

    @property
    def _merging(self) -> dict[str, Any]:
        return {"parameters": to_plain(self.run.parameters)}

    # --- routing ------------------------------------------------------------------------------------------------------

    @property
    def trains_router(self) -> bool:
        """Whether this job needs a trained router."""
        return self.is_twin and self.run.router.name != "oracle"

    def states(self, split: str) -> Stage:
        """What the router reads: the shared expert's states of prompts, those of ``router.source`` or of the exams."""
        layer, token = (getattr(self.run.router, key, default) for key, default in (("layer", -1), ("token", "mean")))
        options: dict[str, Any] = {"split": split, "layer": layer, "token": token, **self._computing}
        if split == TEST:
            inputs = tuple(map(self.exam, self.evaluated))
        else:
            options["rows"] = self.run.router.rows
            inputs = tuple(map(self.learned, self.names))
        label = f"{split} prompts by {self.shared.label}"
        load = by("language.routing", "states", self, split, layer, token)
        return Stage("encode", label, options, (self.base, self.shared, *inputs), load)

    @cached_property
    def router(self) -> Stage:
        """A router trained on states of validation prompts, or of training prompts."""
        run = self.run
        options = {"router": to_plain(run.router), "code": routers[run.router.name].code_hash(), "seed": run.seed}
        tasks = (stage for name in self.names for stage in (self.learned(name), self.exam(name)))
        inputs = (self.states(run.router.source), *tasks)
        return Stage("router", run.router.name, options, inputs, by("language.routing", "router", self))

    @property
    def routing(self) -> tuple[Stage, ...]:
        """What gives w(x) of the exams' prompts; empty for the oracle."""
        return (self.router, self.states(TEST)) if self.trains_router else ()

    # --- answers ------------------------------------------------------------------------------------------------------

    def reference(self, name: str) -> Stage:
        """An expert's answers to its own exam, which normalized scores refer to."""
        inputs = (self.base, self.expert(name), self.exam(name))
        return self._answer(f"{name} by its expert", {}, inputs, "by_expert", name)

    @cached_property
    def answered(self) -> Stage:
        """The answers of the job's one model, merged anew for each prompt where it is a twin, to all exams."""
        exams = tuple(map(self.exam, self.evaluated))
        if self.is_joint:
            return self._answer("all exams by multitask", {}, (self.base, self.joint, *exams), "by_joint")
        if not self.is_twin:
            return self._answer(f"all exams by {self.method.name}", {}, (self.base, self.shared, *exams), "by_static")
        options = {
            "inference": determining(self.run.inference), "code": inferences[self.run.inference.name].code_hash(),
            "router": self.run.router.name,
        }  # fmt: skip
        if hasattr(self.run.inference, "groups"):
            options["groups seed"] = self.run.seed
        inputs = (self.base, self.shared, self.exclusive, *self.routing, *exams)
        return self._answer("all exams, merged anew for each prompt", options, inputs, "by_twin")

    def _answer(
        self, label: str, options: dict[str, Any], inputs: tuple[Stage, ...], function: str, *arguments: Any
    ) -> Stage:
        options = {**options, "seed": self.run.evaluation.seed, "context": self.run.backbone.context, **self._computing}
        return Stage("answer", label, options, inputs, by("language.answers", function, self, *arguments))

    def marks(self, answers: Stage, names: list[str]) -> Stage:
        """What answers are worth."""
        evaluation, tasks = self.run.evaluation, self.run.tasks
        options = {
            "judge": evaluation.name, "code": evaluations[evaluation.name].code_hash(), "names": names,
            "shots": tasks.shots, "instances": tasks.instances,
        }  # fmt: skip
        inputs = (answers, *map(self.exam, names))
        label = f"{answers.label}, judged by {evaluation.name}"
        return Stage("marks", label, options, inputs, by("language.answers", "marks", self, answers, names))

    @property
    def references(self) -> list[Stage]:
        """The marks of every evaluated task's own expert."""
        return [self.marks(self.reference(name), [name]) for name in self.evaluated]

    @property
    def marked(self) -> list[Stage]:
        """The marks of the job's answers."""
        return self.references if self.is_ensemble else [self.marks(self.answered, self.evaluated)]

    @cached_property
    def result(self) -> Stage:
        """Scores, bytes, routing and choices of the job."""
        inputs = (
            *map(self.expert, self.evaluated), *map(self.learned, self.evaluated), *self.references, *self.marked,
            *self.routing,
        )  # fmt: skip
        options = {"method": to_plain(self.method), "sparsifier": describe(self.run.sparsifier), "unseen": self.unseen}
        return Stage("result", self.label, options, inputs, by("language.result", "result", self))
