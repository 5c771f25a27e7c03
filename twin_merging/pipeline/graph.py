"""What the stages of any job hang on: its configuration, its cache, where its files are, and who is merged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

from twin_merging import assets
from twin_merging.backbones.clip_source import locate_clip
from twin_merging.backbones.sources import Source, locate, patterns_of
from twin_merging.backbones.timm_source import locate_timm
from twin_merging.config import Clip, RunConfig, Timm, task_sources
from twin_merging.errors import unknown
from twin_merging.language_checks import is_language
from twin_merging.mirror.folder import ASSETS
from twin_merging.pipeline.cache import Artefact, Cache
from twin_merging.pipeline.environment import resolve_precision
from twin_merging.pipeline.labels import label_of
from twin_merging.pipeline.stage import Stage


class Graph(ABC):
    """The graph of one job's stages.

    Args:
        run: the job's configuration.
        cache: where artefacts are found and put.
    """

    def __init__(self, run: RunConfig, cache: Cache):
        self.run, self.cache = run, cache
        self.mirror = Path(run.paths.mirror).expanduser() if run.paths.mirror else None
        self.asset_folder = assets.asset_folder(str(self.mirror / ASSETS) if self.mirror else run.paths.assets)
        self.precision = resolve_precision(run.precision, run.device)
        self.unseen = list(run.tasks.unseen)
        self.names = [name for name in run.tasks.names if name not in self.unseen]
        self.evaluated = [*self.names, *self.unseen]
        self.method = run.merge_method
        self.is_twin = hasattr(self.method, "shared")
        self.is_ensemble = self.method.name == "finetuned"
        self.is_joint = self.method.name == "multitask"

    @property
    @abstractmethod
    def base(self) -> Stage:
        """θ₀."""

    @property
    @abstractmethod
    def experts(self) -> list[Stage]:
        """θ_t, in the order of the tasks that merge."""

    @property
    @abstractmethod
    def prepared(self) -> list[Stage]:
        """What is computed before the first expert is trained, so that bad input is found: data, θ₀, imported experts."""

    @property
    @abstractmethod
    def router(self) -> Stage:
        """A trained router."""

    @property
    @abstractmethod
    def result(self) -> Stage:
        """Scores, bytes, routing and choices of the job."""

    @cached_property
    def task_source(self) -> Any:
        """The source of the tasks, which knows all the names asked for."""
        source = task_sources[self.run.tasks.name].load()(self.run.tasks, self.run.paths)
        for name in self.evaluated:
            if name not in source.known():
                raise unknown("tasks.names", name, source.known(), "task")
        return source

    @cached_property
    def backbone_source(self) -> Source:
        """The pre-trained model's folder, and what identifies θ₀."""
        backbone = self.run.backbone
        if isinstance(backbone, Clip):
            return locate_clip(backbone, self.asset_folder, self.mirror)
        if isinstance(backbone, Timm):
            return locate_timm(backbone, self.asset_folder, self.mirror)
        patterns = patterns_of(backbone.trust_remote_code)
        return locate(backbone.pretrained, backbone.revision, self.asset_folder, patterns=patterns, mirror=self.mirror)

    @property
    def is_offline_suite(self) -> bool:
        """Whether tasks are read from the offline assets, so that no score can be compared with the paper's."""
        return any(self.task_source.assets(name) for name in self.evaluated)

    @property
    def has_random_weights(self) -> bool:
        """Whether θ₀ is not pre-trained, so that scores say nothing of any method."""
        return "random" in self.backbone_source.identity

    @property
    def label(self) -> str:
        """The method's name in tables."""
        return label_of(self.run)

    def get(self, stage: Stage) -> Artefact:
        """A stage's artefact."""
        return self.cache.get(stage)


def graph_of(run: RunConfig, cache: Cache) -> Graph:
    """The graph of a job: of texts that a language model answers, or of features that heads answer from."""
    if is_language(run):
        from twin_merging.pipeline.language.stages import LanguageStages

        return LanguageStages(run, cache)
    from twin_merging.pipeline.stages import Stages

    return Stages(run, cache)
