"""The options of ``merge.py``: the same groups and checks as those of ``run.py``, composed without starting Hydra."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from twin_merging.config import REGISTRIES, Parameters, bytes_of, option
from twin_merging.cross_checks import check_size
from twin_merging.errors import UserError, nearest, unknown
from twin_merging.registry import CONFIGS, load_plugins
from twin_merging.typed_options import component, typed
from twin_merging.validation import STATIC_METHODS_EXCLUDED, with_shared_expert

GROUPS = {"merge_method": "task_arithmetic", "sparsifier": "svd"}  # and what they are by default
SHARED = "merge_method@merge_method.shared"


@dataclass
class MergeOptions:
    """One merge."""

    base: str = option("???", "θ₀: a folder, a hub name (name@revision), or asset:NAME")
    experts: list[str] = option([], "θ_t: the same, or PEFT LoRA adapters")
    out: str = option("???", "the folder to write, which must not exist or be empty")
    merge_method: Any = None
    sparsifier: Any = None
    parameters: Parameters = field(default_factory=Parameters)
    output: str = option(
        "auto",
        "the result, or a twin's shared expert: auto is an adapter where that is exact, else a model",
        choices=("auto", "adapter", "model"),
    )
    adapter_rank: int | None = option(None, "rank of an adapter that is written; null: exact", low=1)
    vocabulary: str = option(
        "same", "same: all sizes must agree; base: keep the base's rows, merge those that both have", choices=("same", "base")
    )  # fmt: skip
    dtype: str = option("base", "of the weights written", choices=("base", "float32", "float16", "bfloat16"))
    max_shard_size: str = option("5GB", "largest weight file: a number with KB, MB or GB")
    router: str | None = option(None, "a trained router.safetensors to put beside a twin")
    seed: int = option(0, "seed of methods that draw at random", low=0, high=2**32 - 1)
    plugins: list[str] = option([], "modules to import that register components")


FIELDS = {item.name: item for item in dataclasses.fields(MergeOptions)}
TEXTS = [name for name, item in FIELDS.items() if item.type in ("str", "str | None")]


def compose(overrides: list[str]) -> MergeOptions:
    """The typed options that ``key=value`` arguments ask for.

    Raises:
        UserError: for the first key or value that is missing, unknown, of the wrong type or out of range.
    """
    given = dict(_pair(text) for text in overrides)
    plugins = given.get("plugins", [])
    load_plugins([plugins] if isinstance(plugins, str) else list(plugins))
    cfg = OmegaConf.create({group: _option(group, given.pop(group, default)) for group, default in GROUPS.items()})
    if SHARED in given:
        cfg.merge_method["shared"] = _option("merge_method", given.pop(SHARED), SHARED)
    for key, value in given.items():
        first = re.split(r"[.\[@]", key)[0]
        if first not in FIELDS:
            raise UserError(
                "unknown key", key=key, found=value, expected="one of " + ", ".join(FIELDS), nearest=nearest(first, FIELDS)
            )  # fmt: skip
        OmegaConf.update(cfg, key, value, force_add=True)
    return _checked(cfg)


def _pair(text: str) -> tuple[str, Any]:
    """Key and value of an argument; the value is YAML, but for keys that take text as it stands, such as a path."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(
            "this cannot be read as key=value",
            key=text,
            expected="key=value or key=[a,b]",
            hint="python merge.py --help",
        )
    if key in TEXTS or key in GROUPS:
        return key, None if value == "null" else value
    try:
        return key, OmegaConf.create(f"value: {value}").value
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(
            "this value cannot be read", key=key, found=value, expected="a number, text, or a list as in [a,b]"
        ) from error


def _option(group: str, name: Any, key: str | None = None) -> DictConfig:
    """What ``configs/GROUP/NAME.yaml`` says, or the defaults of a component that only a plugin brings."""
    registry, file = REGISTRIES[group], CONFIGS / group / f"{name}.yaml"
    if file.is_file():
        node = OmegaConf.load(file)
        assert isinstance(node, DictConfig)
        for entry in node.pop("defaults", []):
            if isinstance(entry, DictConfig):
                ((source, chosen),) = entry.items()
                other, _, place = str(source).lstrip("/").partition("@")
                node[place] = _option(other, chosen)
        return node
    if name not in registry:
        known = {path.stem for path in (CONFIGS / group).glob("*.yaml")} | set(registry)
        raise unknown(key or group, name, known, "option")
    return OmegaConf.create(vars(registry[name].options()))


def _checked(cfg: DictConfig) -> MergeOptions:
    for name in ("base", "experts", "out"):
        if cfg.get(name) in (None, []):
            raise UserError("a value is needed", key=name, expected=FIELDS[name].metadata["help"])
    if isinstance(cfg.experts, str):
        raise UserError("experts are a list", key="experts", found=cfg.experts, expected="experts=[DIR1,DIR2]")
    method = with_shared_expert(component("merge_method", cfg.merge_method, "merge_method"), cfg)
    sparsifier = component("sparsifier", cfg.sparsifier, "sparsifier")
    check_size(sparsifier)
    rest = OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name not in GROUPS])
    options = typed(MergeOptions, rest, "")
    bytes_of(options.max_shard_size, "max_shard_size")
    _check_references(options, method)
    return dataclasses.replace(options, merge_method=method, sparsifier=sparsifier)


def _check_references(options: MergeOptions, method: Any) -> None:
    """Checks that need more than one key."""
    if method.name in STATIC_METHODS_EXCLUDED and method.name != "twin":
        raise needs_data("merge_method", method.name)
    for each, key in ((method, "merge_method"), (getattr(method, "shared", None), "merge_method.shared")):
        if each is not None and getattr(each, "grid", None):
            raise UserError(
                "there are no validation rows to choose from it on", key=f"{key}.grid", found=each.grid,
                expected="null, with one value instead", hint="run.py chooses on validation rows",
            )  # fmt: skip
    if options.router is not None and method.name != "twin":
        raise UserError("only a twin has a router", key="router", found=options.router, expected="merge_method=twin")
    if options.adapter_rank is not None and method.name == "twin":
        raise UserError(
            "a twin's shared expert is exact", key="adapter_rank", found=options.adapter_rank, expected="null",
            hint="sparsifier.rank is that of exclusive knowledge",
        )  # fmt: skip
    if options.adapter_rank is not None and options.output == "model":
        raise UserError(
            "a model has no rank", key="adapter_rank", found=options.adapter_rank, expected="output=adapter"
        )


def needs_data(key: str, name: str) -> UserError:
    """The error for a method that weights alone do not suffice for."""
    from twin_merging.merging.method import kind_of

    usable = [
        known
        for known, found in REGISTRIES["merge_method"].items()
        if known == "twin" or (known not in STATIC_METHODS_EXCLUDED and kind_of(found.load()).needs is None)
    ]
    return UserError(
        "this method needs tasks and their data, or gives more than one model", key=key, found=name,
        expected="one of " + ", ".join(usable), hint=f"python run.py merge_method={name} has the data",
    )  # fmt: skip
