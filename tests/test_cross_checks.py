"""Keys that are each right by themselves and contradict one another are refused."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from changes import changed, refused
from omegaconf import OmegaConf

from twin_merging.config import FullFineTuning, Magnitude, Svd, TfidfRouter, finetunings
from twin_merging.registry import Component
from twin_merging.validation import validate


@pytest.mark.parametrize("place", ["merge_method", "merge_method.shared"])
def test_an_expert_is_one_of_the_tasks(composed, place):
    option = {"name": "expert", "index": 9}
    error = refused(composed, merge_method=option if place == "merge_method" else {"name": "twin", "shared": option})
    assert (error.key, error.found) == (f"{place}.index", 9)
    assert error.expected.startswith("0 (")


@pytest.mark.parametrize("count", [1, 99])
@pytest.mark.parametrize("place", ["merge_method", "merge_method.shared"])
def test_every_merged_task_has_its_gamma(composed, place, count):
    option = {"name": "task_arithmetic", "gamma": [1.0] * count}
    error = refused(composed, merge_method=option if place == "merge_method" else {"name": "twin", "shared": option})
    assert (error.key, error.found) == (f"{place}.gamma", f"{count} of them")


def test_no_task(composed):
    assert refused(composed, tasks__names=[]).key == "tasks.names"


def test_a_task_named_twice(composed):
    error = refused(composed, tasks__names=["cola", "sst2", "cola"])
    assert (error.key, error.found) == ("tasks.names", "cola")


def test_an_oracle_router_with_routed_heads(composed):
    error = refused(composed, router={"name": "oracle"}, evaluation__heads="routed")
    assert error.key == "evaluation.heads"
    assert "router=oracle" in error.found


TFIDF = {"name": "tfidf"}


@pytest.mark.parametrize(
    ("changes", "key", "says"),
    [
        ({"inference__lower": "shared"}, "inference.lower", "mixed"),
        ({"router__grid": []}, "router.grid", "at least one"),
        ({"router__grid": [1.0, 0.0]}, "router.grid", "more than 0"),
        ({"router__rows": 5}, "router.rows", "at least 10"),
        ({"router__holdout": 0.9}, "router.holdout", "at most 0.5"),
        ({"router__temperature": 0}, "router.temperature", "more than 0"),
        ({"router__sublinear": "often"}, "router.sublinear", "bool"),
        ({"router__layer": 0}, "router.layer", "one of name, sublinear"),
    ],
)
def test_a_router_of_token_ids(composed, changes, key, says):
    composed = composed.copy()
    composed.router = OmegaConf.create(TFIDF)
    assert validate(composed).router == TfidfRouter()
    error = refused(composed, **changes)
    assert error.key == key
    assert says in error.expected


def test_one_source_for_several_experts_needs_a_place_for_the_task(composed):
    error = refused(composed, experts__source="some/folder")
    assert error.key == "experts.source"
    assert "{task}" in error.expected
    validate(changed(composed, experts__source="some/{task}"))
    validate(changed(composed, experts__source="some/folder", tasks__names=["cola"]))


@pytest.mark.parametrize(
    "names", [("rank", "budget"), ("rank", "fraction"), ("fraction", "budget"), ("budget", "energy")]
)
def test_one_size_of_the_svd_at_most(composed, names):
    error = refused(composed, **{f"sparsifier__{name}": 1 for name in names})
    assert (error.key, error.found) == ("sparsifier", " and ".join(names))


def test_a_given_size_of_the_svd_replaces_the_default_rank(composed):
    assert validate(changed(composed, sparsifier__budget=4000)).sparsifier == Svd(budget=4000)
    assert validate(changed(composed, sparsifier__rank=4)).sparsifier == Svd(rank=4)
    assert validate(changed(composed, sparsifier__energy=1)).sparsifier == Svd(energy=1.0)


@pytest.mark.parametrize(("name", "expected"), [("svd", Svd(rank=16)), ("magnitude", Magnitude(fraction=0.1))])
def test_how_much_is_kept_if_nothing_is_said(composed, name, expected):
    cfg = composed.copy()
    cfg.sparsifier = OmegaConf.create({"name": name})
    assert validate(cfg).sparsifier == expected


def test_a_stream_of_unknown_tasks_needs_a_router_that_is_trained_and_two_tasks(composed):
    known = {"name": "task_unknown"}
    run = validate(changed(composed, evaluation=known))
    assert (run.evaluation.heads, run.evaluation.noise) == ("routed", [0.0, 0.1, 0.2, 0.4])
    error = refused(composed, evaluation={**known, "heads": "oracle"}, router={"name": "oracle"})
    assert (error.key, error.nearest) == ("router", "mlp")
    assert refused(composed, evaluation=known, tasks__names=["cola"]).key == "tasks.names"
    error = refused(composed, evaluation={**known, "heads": "oracle", "excluded": "task"})
    assert (error.key, error.found) == ("evaluation.excluded", "task with evaluation=task_unknown")
    error = refused(composed, evaluation={**known, "noise": [0.1, 1.5]})
    assert (error.key, error.message) == ("evaluation.noise", "out of range")


def test_one_source_stands_for_no_unseen_task_beside_the_merged_one(composed):
    error = refused(composed, experts__source="some/folder", tasks__names=["cola"], tasks__unseen=["rte"])
    assert error.key == "experts.source"


def test_joint_training_is_not_a_plugins_fine_tuning_of_encoders(composed, monkeypatch):
    @dataclass
    class Mine(FullFineTuning):
        name: str = "mine"

    monkeypatch.setitem(finetunings._components, "mine", Component("mine", Mine, lambda: None))
    error = refused(composed, merge_method={"name": "multitask"}, finetune={"name": "mine"})
    assert (error.key, error.found) == ("finetune.name", "mine with multitask")


KNOWN = {"name": "task_unknown"}
CONTRADICTIONS = [
    ({"tasks__unseen": ["rte", "rte"]}, "tasks.unseen", "rte"),
    ({"experts__sources": {"cola": ""}}, "experts.sources.cola", "''"),
    ({"experts__labels": {"cola": ["no", "yes"]}}, "experts.labels.cola", "cola"),
    ({"experts__normalize_by": "published", "experts__reference": None}, "experts.reference", "no task; none of cola"),
    (
        {"experts__normalize_by": "published", "experts__reference": {"cola": 1.0}},
        "experts.reference",
        "score of cola; none of",
    ),
    ({"experts__labels": {"rte": ["no", "yes"]}, "experts__sources": {"cola": "a"}}, "experts.labels.rte", "rte"),
    ({"evaluation__excluded": "task", "evaluation__heads": "routed"}, "evaluation.excluded", "routed"),
    ({"evaluation__excluded": "task", "tasks__unseen": ["rte"]}, "evaluation.excluded", "tasks.unseen"),
    ({"evaluation": KNOWN, "tasks__unseen": ["rte"]}, "evaluation", "tasks.unseen"),
    ({"merge_method": {"name": "multitask"}, "finetune": {"name": "lora"}}, "finetune.name", "lora with multitask"),
    ({"inference__memory": "much"}, "inference.memory", "much"),
    ({"merge_method__shared__gamma": [1.0]}, "merge_method.shared.gamma", "1 of them"),
    ({"inference__lower": "shared"}, "inference.lower", "router=mlp"),
]


@pytest.mark.parametrize(("changes", "key", "found"), CONTRADICTIONS, ids=[row[1] for row in CONTRADICTIONS])
def test_what_does_not_go_together_is_named(composed, changes, key, found):
    error = refused(composed, **changes)
    assert error.key == key
    assert found in str(error.found)
