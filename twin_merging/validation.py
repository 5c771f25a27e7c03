"""From a composed configuration to a typed ``RunConfig``: every key, type, range and cross-reference is checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from twin_merging.config import REGISTRIES, Experts, Parameters, RunConfig, Sweep, merge_methods
from twin_merging.cross_checks import NESTED, check_references
from twin_merging.errors import UserError, nearest
from twin_merging.typed_options import check_ranges, component, merged, typed

STATIC_METHODS_EXCLUDED = ("finetuned", "twin", "emr", "surgery", "multitask")
"""Methods that do not give one encoder merged from the experts, so that none of them can be a shared expert."""


def validate(cfg: DictConfig) -> RunConfig:
    """Check a composed job configuration and make it typed.

    Raises:
        UserError: for the first key that is unknown, missing, of the wrong type or out of range, or that contradicts
            another one.
    """
    plain = {key: node for key, node in cfg.items_ex(resolve=False) if key != "hydra"}
    known = [field.name for field in dataclasses.fields(RunConfig)]
    for key in plain:
        if key not in known:
            raise UserError(
                "unknown key", key=str(key), found=plain[key],
                expected="one of " + ", ".join(known), nearest=nearest(key, known),
            )  # fmt: skip
    groups = {group: component(group, cfg.get(group), group) for group in REGISTRIES}
    groups["merge_method"] = with_shared_expert(groups["merge_method"], cfg)
    rest = {
        "experts": typed(Experts, cfg.get("experts"), "experts"),
        "parameters": typed(Parameters, cfg.get("parameters"), "parameters"),
        "sweep": typed(Sweep, cfg.get("sweep"), "sweep"),
    }
    scalars = {key: cfg[key] for key in known if key in cfg and key not in groups and key not in rest}
    checked = OmegaConf.to_object(merged(RunConfig, {**dict.fromkeys(groups), **scalars}, ""))
    assert isinstance(checked, RunConfig)
    run = dataclasses.replace(checked, **groups, **rest)
    check_ranges(run, "")
    check_references(run)
    return run


def to_plain(options: Any) -> Any:
    """A dataclass tree as plain dicts and lists, for JSON, hashing and printing."""
    if dataclasses.is_dataclass(options) and not isinstance(options, type):
        return {field.name: to_plain(getattr(options, field.name)) for field in dataclasses.fields(options)}
    if isinstance(options, Mapping):
        return {str(key): to_plain(value) for key, value in options.items()}
    if isinstance(options, (list, tuple)):
        return [to_plain(value) for value in options]
    return options


def with_shared_expert(method: Any, cfg: DictConfig) -> Any:
    """Make the ``shared`` or ``merge`` node of a method typed: it is a static merge method with its own options."""
    inner = next((field.name for field in dataclasses.fields(method) if field.name in NESTED), None)
    if inner is None:
        return method
    node, key = cfg.merge_method[inner], f"merge_method.{inner}"
    given = node.get("name") if isinstance(node, DictConfig) else None
    if given in STATIC_METHODS_EXCLUDED:
        known = [name for name in merge_methods if name not in STATIC_METHODS_EXCLUDED]
        raise UserError(
            f"{NESTED[inner]} is one encoder merged from the experts, which this method does not give",
            key=f"{key}.name", found=given, expected="one of " + ", ".join(known),
        )  # fmt: skip
    return dataclasses.replace(method, **{inner: component("merge_method", node, key)})
