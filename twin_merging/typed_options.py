"""From a mapping to a component's typed options: every key, type, range and choice is checked against the schema."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from twin_merging.config import REGISTRIES
from twin_merging.errors import UserError, nearest


def component(group: str, node: Any, key: str) -> Any:
    """The typed options of the component that ``node.name`` selects."""
    if not isinstance(node, DictConfig):
        raise UserError("a group needs an option", key=key, found=node, expected=f"{key}=NAME or a mapping with a name")
    name = node.get("name")
    if name is None:
        raise UserError("no component is named", key=f"{key}.name", expected=f"one of {', '.join(REGISTRIES[group])}")
    return typed(REGISTRIES[group][name].options, node, key)


def typed(options: type, node: Any, key: str) -> Any:
    """A mapping as the dataclass ``options``, its keys, types and ranges checked; ``key`` is what holds it."""
    checked = OmegaConf.to_object(merged(options, node, key))
    check_ranges(checked, key)
    return checked


def merged(options: type, node: Any, key: str) -> DictConfig:
    _check_keys(options, node, key)
    schema = OmegaConf.structured(options)
    try:
        resolved = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
        merged = OmegaConf.merge(schema, resolved)
        missing = OmegaConf.missing_keys(merged)
    except OmegaConfBaseException as error:
        raise _type_error(error, options, node, key) from error
    if missing:
        raise UserError(
            "a value is needed", key=_joined(key, sorted(missing)[0]), expected=_help(options, sorted(missing)[0])
        )
    assert isinstance(merged, DictConfig)
    return merged


def _check_keys(options: type, node: Any, key: str) -> None:
    fields = {field.name: field for field in dataclasses.fields(options)}
    if not isinstance(node, (DictConfig, dict)):
        raise UserError("this key holds other keys", key=key, found=node, expected=", ".join(fields))
    for name in node:
        if name not in fields:
            expected = "one of " + ", ".join(fields)
            raise UserError("unknown key", key=_joined(key, name), expected=expected, nearest=nearest(name, fields))
        if dataclasses.is_dataclass(nested := fields[name].default_factory):
            _check_keys(nested, node[name], _joined(key, name))


def _type_error(error: OmegaConfBaseException, options: type, node: Any, key: str) -> UserError:
    name = error.full_key or error.key
    found = OmegaConf.select(OmegaConf.create(node), str(name)) if name else None
    first = str(error).splitlines()[0]
    if name is None:
        return UserError(first, key=key)
    return UserError(first, key=_joined(key, name), found=found, expected=_help(options, str(name)))


def _help(options: type, name: str) -> str | None:
    first, _, rest = name.partition(".")
    for field in dataclasses.fields(options):
        if field.name == first.split("[")[0]:
            if rest and dataclasses.is_dataclass(nested := field.default_factory):
                return _help(nested, rest)
            kind = str(field.type)
            return f"{kind}: {field.metadata['help']}" if "help" in field.metadata else kind
    return None


def check_ranges(options: Any, key: str) -> None:
    """Check every number against its closed range and every choice against its list, in nested options too.

    Of a mapping each value's type is checked too, which OmegaConf leaves alone where it is a list or a mapping.
    """
    for field in dataclasses.fields(options):
        value, name = getattr(options, field.name), _joined(key, field.name)
        if dataclasses.is_dataclass(value):
            check_ranges(value, name)
            continue
        if isinstance(value, dict) and str(field.type).startswith("dict["):
            _check_kinds(value, name, field)
        items = (
            value.values() if isinstance(value, dict) else value if isinstance(value, (list, ListConfig)) else [value]
        )
        for item in items:
            _check_value(item, name, field.metadata)


def _check_kinds(values: dict[str, Any], key: str, field: dataclasses.Field) -> None:
    is_list = "list[" in str(field.type)
    for name, value in values.items():
        if isinstance(value, list) != is_list or isinstance(value, dict):
            raise UserError(
                "a value of the wrong type", key=_joined(key, name), found=value, expected=f"{field.type}: {field.metadata['help']}"
            )  # fmt: skip


def _check_value(value: Any, key: str, metadata: Mapping[str, Any]) -> None:
    choices, low, high = metadata.get("choices"), metadata.get("low"), metadata.get("high")
    if choices and value not in choices:
        expected = "one of " + ", ".join(choices)
        raise UserError("not a valid choice", key=key, found=value, expected=expected, nearest=nearest(value, choices))
    if value is None or isinstance(value, (str, bool)):
        return
    outside = (low is not None and not value >= low) or (high is not None and not value <= high)
    if outside:
        bounds = [f"at least {low:g}"] if low is not None else []
        bounds += [f"at most {high:g}"] if high is not None else []
        expected = " and ".join(bounds).replace("at least 1e-12", "more than 0")
        raise UserError("out of range", key=key, found=value, expected=f"{expected} ({metadata['help']})")


def _joined(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)
