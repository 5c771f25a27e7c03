"""From a composed configuration to a typed ``RunConfig``: every key, type, range and cross-reference is checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from twin_merging.config import (
    REGISTRIES,
    Expert,
    Experts,
    Magnitude,
    Parameters,
    RunConfig,
    Svd,
    Sweep,
    TaskUnknown,
    TfidfRouter,
    bytes_of,
    merge_methods,
)
from twin_merging.errors import UserError, nearest

DEFAULT_SIZES: dict[type, tuple[str, Any]] = {Svd: ("rank", 16), Magnitude: ("fraction", 0.1)}
STATIC_METHODS_EXCLUDED = ("finetuned", "twin", "emr", "surgery", "multitask")
"""Methods that do not give one encoder merged from the experts, so that none of them can be a shared expert."""
NESTED = {"shared": "a shared expert", "merge": "what surgery operates on"}
"""Keys of a method that hold a static method, and what that makes."""


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
    checked = OmegaConf.to_object(_merged(RunConfig, {**dict.fromkeys(groups), **scalars}, ""))
    assert isinstance(checked, RunConfig)
    run = dataclasses.replace(checked, **groups, **rest)
    _check_ranges(run, "")
    _check_references(run)
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
    checked = OmegaConf.to_object(_merged(options, node, key))
    _check_ranges(checked, key)
    return checked


def _merged(options: type, node: Any, key: str) -> DictConfig:
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
            "a value is needed", key=_join(key, sorted(missing)[0]), expected=_help(options, sorted(missing)[0])
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
            raise UserError("unknown key", key=_join(key, name), expected=expected, nearest=nearest(name, fields))
        if dataclasses.is_dataclass(nested := fields[name].default_factory):
            _check_keys(nested, node[name], _join(key, name))


def _type_error(error: OmegaConfBaseException, options: type, node: Any, key: str) -> UserError:
    name = error.full_key or error.key
    found = OmegaConf.select(OmegaConf.create(node), str(name)) if name else None
    first = str(error).splitlines()[0]
    if name is None:
        return UserError(first, key=key)
    return UserError(first, key=_join(key, name), found=found, expected=_help(options, str(name)))


def _help(options: type, name: str) -> str | None:
    first, _, rest = name.partition(".")
    for field in dataclasses.fields(options):
        if field.name == first.split("[")[0]:
            if rest and dataclasses.is_dataclass(nested := field.default_factory):
                return _help(nested, rest)
            kind = str(field.type)
            return f"{kind}: {field.metadata['help']}" if "help" in field.metadata else kind
    return None


def _check_ranges(options: Any, key: str) -> None:
    """Check every number against its closed range and every choice against its list, in nested options too."""
    for field in dataclasses.fields(options):
        value, name = getattr(options, field.name), _join(key, field.name)
        if dataclasses.is_dataclass(value):
            _check_ranges(value, name)
            continue
        items = (
            value.values() if isinstance(value, dict) else value if isinstance(value, (list, ListConfig)) else [value]
        )
        for item in items:
            _check_value(item, name, field.metadata)


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


def _check_references(run: RunConfig) -> None:
    """Checks that need more than one key."""
    names = run.tasks.names
    if not names:
        raise UserError(
            "no task is named", key="tasks.names", found="[]", expected="at least one task, as in [cola,sst2]"
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError("a task is named twice", key="tasks.names", found=", ".join(repeated))
    names = _check_unseen(run)
    if run.evaluation.heads == "routed" and run.router.name == "oracle":
        raise UserError(
            "an oracle router gives the true task, so routed heads would be oracle heads",
            key="evaluation.heads", found="routed with router=oracle", expected="oracle, or router=mlp",
        )  # fmt: skip
    if isinstance(run.evaluation, TaskUnknown):
        _check_task_unknown(run)
    by_pattern = [name for name in names if name not in (run.experts.sources or {})]
    if run.experts.source is not None and len(by_pattern) > 1 and "{task}" not in run.experts.source:
        raise UserError(
            "one pattern has to name every expert",
            key="experts.source", found=run.experts.source, expected="a folder or hub name with {task} in it",
        )  # fmt: skip
    if run.evaluation.excluded == "task":
        _check_own_values(run)
    _check_expert(run.merge_method, "merge_method", names)
    for method, key in (
        (run.merge_method, "merge_method"),
        *((getattr(run.merge_method, inner, None), f"merge_method.{inner}") for inner in NESTED),
    ):
        gamma = getattr(method, "gamma", None)
        if gamma is not None and len(gamma) != len(names):
            raise UserError(
                "one γ for each merged task", key=f"{key}.gamma", found=f"{len(gamma)} of them", expected=f"{len(names)}: {', '.join(names)}"
            )  # fmt: skip
    for inner in NESTED:
        _check_expert(getattr(run.merge_method, inner, None), f"merge_method.{inner}", names)
    if run.merge_method.name == "multitask" and run.finetune.name != "full":
        raise UserError(
            "joint training trains all parameters", key="finetune.name", found=f"{run.finetune.name} with multitask",
            expected="full",
        )  # fmt: skip
    check_size(run.sparsifier)
    if hasattr(run.inference, "memory"):
        bytes_of(run.inference.memory, "inference.memory")
    if isinstance(run.router, TfidfRouter):
        _check_tfidf(run)
    if getattr(run.inference, "lower", None) == "shared" and getattr(run.router, "layer", -1) < 0:
        raise UserError(
            "nothing is below the layer that this router reads", key="inference.lower", found=f"shared with router={run.router.name}",
            expected="a router of an early layer", hint="router=mlp_early, or router.layer=K",
        )  # fmt: skip


def _check_unseen(run: RunConfig) -> list[str]:
    """The tasks that merge, which are those of ``tasks.names`` that are not unseen."""
    unseen, names = run.tasks.unseen, [name for name in run.tasks.names if name not in run.tasks.unseen]
    if not unseen:
        return names
    if repeated := sorted({name for name in unseen if unseen.count(name) > 1}):
        raise UserError("a task is named twice", key="tasks.unseen", found=", ".join(repeated))
    if not names:
        raise UserError(
            "no task is left to merge", key="tasks.unseen", found=", ".join(unseen), expected="not all of tasks.names"
        )
    if run.merge_method.name in ("finetuned", "surgery"):
        raise UserError(
            "this method has to know a task to answer for it", key="tasks.unseen", found=f"{', '.join(unseen)} with {run.merge_method.name}",
            expected="no unseen task, or another merge_method",
        )  # fmt: skip
    if run.router.name == "oracle" and run.merge_method.name in ("twin", "emr"):
        raise UserError(
            "an oracle router has no expert for a task that is unseen", key="router", found="oracle with tasks.unseen",
            expected="a trained router",
        )  # fmt: skip
    return names


def _check_own_values(run: RunConfig) -> None:
    if run.evaluation.heads == "routed":
        raise UserError(
            "the true task's values are known with the true task's head only", key="evaluation.excluded",
            found="task with evaluation.heads=routed", expected="pretrained",
        )  # fmt: skip
    if run.tasks.unseen:
        raise UserError(
            "the values of a task that is not merged are not known", key="evaluation.excluded", found="task with tasks.unseen",
            expected="pretrained",
        )  # fmt: skip
    if run.merge_method.name == "surgery":
        raise UserError(
            "adapters are learned on one encoder for all tasks", key="evaluation.excluded",
            found="task with merge_method=surgery", expected="pretrained",
        )  # fmt: skip


def _check_task_unknown(run: RunConfig) -> None:
    if run.router.name == "oracle":
        raise UserError(
            "an oracle router knows the task, which this evaluation takes as unknown", key="router",
            found="oracle with evaluation=task_unknown", expected="a router that is trained", nearest="mlp",
        )  # fmt: skip
    if run.evaluation.excluded == "task":
        raise UserError(
            "the true task's values are not known where the task is not", key="evaluation.excluded",
            found="task with evaluation=task_unknown", expected="pretrained",
        )  # fmt: skip
    if run.tasks.unseen:
        raise UserError(
            "the stream has rows of merged tasks alone", key="evaluation", found="task_unknown with tasks.unseen",
            expected="evaluation=scores; a new domain is made by leaving each task out in turn",
        )  # fmt: skip
    if len(run.tasks.names) < 2:
        raise UserError(
            "a task is unknown only among others", key="tasks.names", found=f"[{run.tasks.names[0]}] with evaluation=task_unknown",
            expected="at least two tasks",
        )  # fmt: skip


def _check_tfidf(run: RunConfig) -> None:
    if not run.router.grid:
        raise UserError("no C to choose from", key="router.grid", found="[]", expected="at least one, as in [1.0,10.0]")
    if getattr(run.inference, "lower", None) == "shared":
        raise UserError(
            "this router reads token ids, so that one pass answers and no layer is below what it reads", key="inference.lower",
            found="shared with router=tfidf", expected="mixed, which takes no other pass",
        )  # fmt: skip


def _check_expert(method: Any, key: str, names: list[str]) -> None:
    if isinstance(method, Expert) and method.index >= len(names):
        raise UserError(
            "no task has this place", key=f"{key}.index", found=method.index,
            expected=", ".join(f"{index} ({name})" for index, name in enumerate(names)), nearest=str(len(names) - 1),
        )  # fmt: skip


def check_size(sparsifier: Any) -> None:
    """Check that at most one of the keys that say how much is kept is set, and set the default if none is."""
    if type(sparsifier) not in DEFAULT_SIZES:
        return
    default, value = DEFAULT_SIZES[type(sparsifier)]
    known = [name for name in ("rank", "fraction", "budget", "energy") if hasattr(sparsifier, name)]
    given = [name for name in known if getattr(sparsifier, name) is not None]
    if len(given) > 1:
        raise UserError(
            "at most one of these can be set", key="sparsifier", found=" and ".join(given),
            expected=f"{', '.join(known[:-1])} or {known[-1]}", hint=f"add sparsifier.{given[0]}=null",
        )  # fmt: skip
    if not given:
        setattr(sparsifier, default, value)


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)
