"""What the stages beside the scores are addressed by: every setting that changes what they find, and no other."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from twin_merging.compose import plan
from twin_merging.pipeline import routing_stages, task_unknown, timing, token_stages, unseen_stages
from twin_merging.pipeline.cache import Cache
from twin_merging.pipeline.stages import Stages

UNKNOWN = ("merge_method=task_arithmetic", "evaluation=task_unknown", "evaluation.noise=[0.0]")
FROZEN = ("merge_method=task_arithmetic", "tasks.unseen=[answer]", "evaluation.unseen_head=frozen", "experts.seed=0")
STATIC, TWIN = "merge_method=task_arithmetic", "merge_method=twin"
ROUTED = ("merge_method=finetuned", "evaluation.heads=routed", "experts.seed=0")
KEYS = {
    "unknown": lambda stages: task_unknown.stage(stages).key,
    "timing": lambda stages: timing.stage(stages).key,
    "head": lambda stages: unseen_stages.frozen_head(stages, "answer").key,
    "chosen": lambda stages: routing_stages.chosen(stages).key,
    "lengths": lambda stages: [stage.key for stage in token_stages.needed(stages)],
    "result": lambda stages: stages.result.key,
}


@pytest.fixture(scope="module")
def key(small: list[str]):
    @cache  # composing takes longest
    def stages_of(*arguments: str) -> Stages:
        (run,) = plan([*small, *arguments], multirun=False).jobs
        return Stages(run, Cache(Path("nowhere")))

    return lambda kind, *arguments: KEYS[kind](stages_of(*arguments))


@pytest.mark.parametrize(
    ("kind", "arguments", "setting"),
    [
        ("unknown", UNKNOWN, "evaluation.noise=[0.1]"), ("unknown", UNKNOWN, "evaluation.new_domain=false"),
        ("unknown", UNKNOWN, "router.epochs=3"), ("unknown", UNKNOWN, "merge_method.scaling=0.5"),
        ("timing", [STATIC], "evaluation.timing=7"), ("timing", [STATIC], "evaluation.batch_size=7"),
        ("timing", [STATIC], "precision=bf16"), ("timing", [STATIC], "backbone.max_length=9"),
        ("timing", [STATIC], "evaluation.heads=routed"), ("timing", [TWIN], "inference.batch_size=7"),
        ("timing", [TWIN], "inference.plan=dense"), ("timing", [TWIN], "inference.top_k=1"), ("timing", [TWIN], "sparsifier.rank=2"),
        ("timing", [TWIN], "router.layer=0"), ("timing", [TWIN], "merge_method=emr"),
        ("timing", ["merge_method=pretrained", "evaluation.heads=routed"], "merge_method=finetuned"),
        ("head", FROZEN, "seed=1"), ("head", FROZEN, "merge_method.scaling=0.5"),
        ("chosen", ROUTED, "seed=1"), ("chosen", ROUTED, "router.layer=0"), ("chosen", ROUTED, "finetune.epochs=3"),
        ("lengths", ["merge_method=regmean"], "merge_method=fisher"), ("lengths", ["merge_method=regmean"], "merge_method.rows=9"),
        ("lengths", ["merge_method=regmean"], "backbone.max_length=9"), ("lengths", [TWIN], "router.source=train"),
        ("result", FROZEN, "tasks.unseen=[size]"), ("result", FROZEN, "evaluation.unseen_head=expert"),
        ("result", ["merge_method=finetuned", "evaluation.heads=oracle"], "evaluation.heads=routed"),
        ("result", [STATIC, "merge_method.gamma=[1,1,1]"], "merge_method.gamma=[1,1,0]"),
    ],
)  # fmt: skip
def test_a_setting_makes_it_new(key, kind: str, arguments: list[str], setting: str):
    before = [text for text in arguments if text.partition("=")[0] != setting.partition("=")[0]]
    old = [text for text in arguments if text not in before]
    assert key(kind, *before, *old) != key(kind, *before, setting)


@pytest.mark.parametrize(
    ("kind", "arguments", "setting"),
    [
        ("unknown", UNKNOWN, "evaluation.heads=oracle"), ("unknown", UNKNOWN, "evaluation.timing=7"),
        ("timing", [STATIC], "merge_method.scaling=0.5"), ("timing", [STATIC], "seed=1"), ("timing", [STATIC], "finetune.epochs=3"),
        ("head", FROZEN, "router.epochs=3"), ("lengths", [TWIN], "seed=1"), ("lengths", [TWIN], "sparsifier.rank=2"),
        ("result", [STATIC], "evaluation.unseen_head=frozen"), ("result", [STATIC], "evaluation.timing=7"),
    ],
)  # fmt: skip
def test_another_does_not(key, kind: str, arguments: list[str], setting: str):
    assert key(kind, *arguments) == key(kind, *arguments, setting)
