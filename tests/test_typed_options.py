"""A wrong value of one key is refused with its key, what was found, what was expected and the nearest valid choice."""

from __future__ import annotations

import pytest
from changes import changed, refused
from omegaconf import OmegaConf

from twin_merging.errors import UserError
from twin_merging.validation import validate

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
    ("experts__tolerance", -1, "at least 0"),
    ("experts__seed", -1, "at least 0"),
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


@pytest.mark.parametrize(("name", "value"), [("experts__reference", 101.0), ("tasks__train_rows", 0)])
def test_so_is_one_of_a_task(composed, name, value):
    error = refused(composed, **{name: {"cola": 1, "rte": value}})
    assert (error.message, error.key, error.found) == ("out of range", name.replace("__", "."), value)


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
    ("experts__sources", "somewhere", "dict[str, str] | None"),
]


@pytest.mark.parametrize(("name", "value", "expected"), TYPES, ids=[f"{row[0]}={row[1]}" for row in TYPES])
def test_a_value_of_the_wrong_type_is_refused(composed, name, value, expected):
    error = refused(composed, **{name: value})
    assert (error.key, error.found) == (name.replace("__", "."), value)
    assert error.expected.startswith(expected)


BY_TASK = [
    ("experts__sources", ["a", "b"], "dict[str, str]"),
    ("experts__sources", {"a": "b"}, "dict[str, str]"),
    ("experts__labels", "no", "dict[str, list[str]]"),
    ("experts__labels", {"no": 1}, "dict[str, list[str]]"),
    ("experts__reference", [90.0], "dict[str, float]"),
    ("experts__reference", "high", "dict[str, float]"),
    ("tasks__train_rows", [5], "dict[str, int]"),
]


@pytest.mark.parametrize(("name", "value", "expected"), BY_TASK, ids=[f"{row[0]}={row[1]}" for row in BY_TASK])
def test_a_value_by_task_of_the_wrong_type_is_refused(composed, name, value, expected):
    error = refused(composed, **{name: {"cola": value}})
    assert (error.key, error.found) == (f"{name.replace('__', '.')}.cola", value)
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
