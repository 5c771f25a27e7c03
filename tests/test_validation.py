"""A composed configuration becomes a typed one."""

from __future__ import annotations

import pytest
from changes import changed, refused

from twin_merging.config import MlpRouter, Rows, Svd, TaskArithmetic, Twin, WeightAveraging
from twin_merging.validation import to_plain, validate


def test_the_default_configuration_becomes_typed(composed):
    run = validate(composed)
    assert run.merge_method == Twin(shared=TaskArithmetic())
    assert run.sparsifier == Svd(rank=16)
    assert isinstance(run.router, MlpRouter)
    assert run.tasks.rows == Rows()
    assert run.parameters.include == [".*"]
    assert len(run.tasks.names) == 8


def test_numbers_are_converted_to_their_type(composed):
    run = validate(changed(composed, finetune__lr="1e-3", merge_method__shared__scaling=1, seed="7"))
    assert (run.finetune.lr, run.merge_method.shared.scaling, run.seed) == (0.001, 1.0, 7)
    assert isinstance(run.merge_method.shared.scaling, float)


def test_a_plain_tree_has_every_value(composed):
    plain = to_plain(validate(composed))
    assert plain["merge_method"] == {
        "name": "twin",
        "shared": {"name": "task_arithmetic", "scaling": 0.3, "grid": None, "gamma": None},
    }
    assert plain["tasks"]["rows"] == {"train": None, "validation": None, "test": None}
    assert plain["seed"] == 0


@pytest.mark.parametrize("name", ["twin", "finetuned"])
def test_a_shared_expert_is_one_encoder(composed, name):
    error = refused(composed, merge_method__shared={"name": name})
    assert (error.key, error.found) == ("merge_method.shared.name", name)
    offered = set(error.expected.removeprefix("one of ").split(", "))
    assert {"pretrained", "weight_averaging", "task_arithmetic"} <= offered
    assert not offered & {"twin", "finetuned"}


def test_any_static_method_may_make_the_shared_expert(composed):
    run = validate(changed(composed, merge_method__shared={"name": "weight_averaging"}))
    assert run.merge_method.shared == WeightAveraging()
