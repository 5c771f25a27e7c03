"""Every wrong value is refused with its key, what was found, what was expected and the nearest valid choice."""

from __future__ import annotations

import pytest
from omegaconf import DictConfig, OmegaConf

from twin_merging.compose import _composer, register_resolvers
from twin_merging.config import Magnitude, MlpRouter, Rows, Svd, TaskArithmetic, TfidfRouter, Twin, WeightAveraging
from twin_merging.errors import UserError
from twin_merging.validation import to_plain, validate


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    """The default configuration, once, since composing is slow."""
    from hydra import compose

    register_resolvers()
    with _composer():
        return compose("config")


def changed(composed: DictConfig, **values) -> DictConfig:
    """A copy with some keys set; ``__`` in a name stands for a dot."""
    cfg = composed.copy()
    for name, value in values.items():
        OmegaConf.update(cfg, name.replace("__", "."), value, merge=not isinstance(value, dict), force_add=True)
    return cfg


def refused(composed: DictConfig, **values) -> UserError:
    with pytest.raises(UserError) as caught:
        validate(changed(composed, **values))
    return caught.value


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


UNKNOWN = [
    ("sed", 1, "sed", "seed"),
    ("router__epoch", 3, "router.epoch", "epochs"),
    ("tasks__rows__trian", 3, "tasks.rows.trian", "train"),
    ("merge_method__shared__scalin", 0.5, "merge_method.shared.scalin", "scaling"),
    ("parameters__exlude", ["a"], "parameters.exlude", "exclude"),
    ("experts__sourse", "a", "experts.sourse", "source"),
]


@pytest.mark.parametrize(("name", "value", "key", "nearest"), UNKNOWN, ids=[row[2] for row in UNKNOWN])
def test_an_unknown_key_is_named_with_the_nearest(composed, name, value, key, nearest):
    error = refused(composed, **{name: value})
    assert error.message == "unknown key"
    assert (error.key, error.nearest) == (key, nearest)
    assert nearest in error.expected


OUT_OF_RANGE = [
    ("seed", -1, "at least 0"),
    ("seed", 2**32, "at most 4.29497e+09"),
    ("router__holdout", 0.9, "at most 0.5"),
    ("router__batch_size", 1, "at least 2"),
    ("finetune__lr", 0, "more than 0 and at most 1"),
    ("finetune__lr", 2, "more than 0 and at most 1"),
    ("tasks__rows__train", 0, "at least 1"),
    ("tasks__limit", 0, "at least 1"),
    ("backbone__max_length", 1, "at least 2"),
    ("sparsifier__rank", 0, "at least 1"),
    ("sparsifier__fraction", 0.0, "more than 0"),
    ("sparsifier__budget", 0, "at least 1"),
    ("sparsifier__energy", 1.5, "at most 1"),
    ("merge_method__shared__scaling", float("nan"), "at least -10 and at most 10"),
    ("merge_method__shared__grid", [0.1, 11], "at least -10 and at most 10"),
]


@pytest.mark.parametrize(
    ("name", "value", "expected"), OUT_OF_RANGE, ids=[f"{row[0]}={row[1]}" for row in OUT_OF_RANGE]
)
def test_a_value_out_of_range_is_refused(composed, name, value, expected):
    error = refused(composed, **{name: value})
    assert error.message == "out of range"
    assert error.key == name.replace("__", ".")
    assert str(error.found) == str(float(value[-1]) if isinstance(value, list) else type(error.found)(value))
    assert expected in error.expected


BOUNDS = [
    ("seed", 0),
    ("seed", 2**32 - 1),
    ("router__holdout", 0.5),
    ("router__batch_size", 2),
    ("finetune__lr", 1),
    ("sparsifier__budget", 1),
]


@pytest.mark.parametrize(("name", "value"), BOUNDS)
def test_bounds_belong_to_the_range(composed, name, value):
    validate(changed(composed, **{name: value}))


CHOICES = [
    ("precision", "fp23", "fp32"),
    ("cache", "wriet", "write"),
    ("evaluation__heads", "orcale", "oracle"),
    ("finetune__scheduler", "cosin", "cosine"),
    ("tracker__mode", "onlin", "online"),
]


@pytest.mark.parametrize(("name", "value", "nearest"), CHOICES)
def test_a_choice_that_does_not_exist_lists_those_that_do(composed, name, value, nearest):
    error = refused(composed, **{name: value})
    assert error.message == "not a valid choice"
    assert (error.key, error.found, error.nearest) == (name.replace("__", "."), value, nearest)
    assert nearest in error.expected


TYPES = [
    ("seed", "x", "int: seed of training"),
    ("seed", 1.5, "int: seed of training"),
    ("seed", True, "int: seed of training"),
    ("router__lr", "fast", "float: Adam learning rate"),
    ("tasks__names", "cola", "list[str]: which tasks"),
    ("tasks__rows__train", "many", "int | None: rows to fine-tune on"),
    ("merge_method__shared__grid", 0.3, "list[float] | None"),
]


@pytest.mark.parametrize(("name", "value", "expected"), TYPES, ids=[f"{row[0]}={row[1]}" for row in TYPES])
def test_a_value_of_the_wrong_type_is_refused(composed, name, value, expected):
    error = refused(composed, **{name: value})
    assert (error.key, error.found) == (name.replace("__", "."), value)
    assert error.expected.startswith(expected)


@pytest.mark.parametrize("name", ["tasks__rows", "experts", "parameters"])
@pytest.mark.parametrize("value", [None, 3, "all"])
def test_a_key_that_holds_others_takes_no_value(composed, name, value):
    error = refused(composed, **{name: value})
    assert error.key == name.replace("__", ".")
    assert error.found == value


@pytest.mark.parametrize("value", [None, "mlp"])
def test_a_group_takes_no_value(composed, value):
    error = refused(composed, router=value)
    assert (error.key, error.message) == ("router", "a group needs an option")


def test_a_missing_group_is_named(composed):
    cfg = composed.copy()
    OmegaConf.set_struct(cfg, False)
    del cfg["router"]
    with pytest.raises(UserError, match="a group needs an option") as caught:
        validate(cfg)
    assert caught.value.key == "router"


def test_a_component_that_does_not_exist_lists_those_that_do(composed):
    error = refused(composed, merge_method__name="twn")
    assert (error.key, error.found, error.nearest) == ("merge_method.name", "twn", "twin")
    assert "task_arithmetic" in error.expected


def test_a_group_without_name_lists_its_components(composed):
    error = refused(composed, router__name=None)
    assert error.key == "router.name"
    assert "mlp" in error.expected


def test_a_value_that_must_be_given_says_what_it_means(composed):
    error = refused(composed, backbone__pretrained="???")
    assert (error.key, error.message) == ("backbone.pretrained", "a value is needed")
    assert "a folder, or a hub name" in error.expected


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
