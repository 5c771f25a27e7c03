"""Hydra's ``key=value`` arguments: read, and composed to a configuration, with one clear error for what is wrong."""

from __future__ import annotations

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from twin_merging.config import REGISTRIES
from twin_merging.errors import UserError, nearest

GROUPS = {*REGISTRIES, "exp", ""}
EXTRAS = {
    "hydra/launcher=joblib": "pip install 'twin_merging[joblib]'",
    "hydra/launcher=submitit_local": "pip install 'twin_merging[submitit]'",
    "hydra/launcher=submitit_slurm": "pip install 'twin_merging[submitit]'",
    "hydra/launcher=ray": "pip install 'twin_merging[ray]' && pip install --no-deps hydra-ray-launcher==1.2.2",
    "hydra/sweeper=optuna": "pip install 'twin_merging[optuna]'",
}
"""What brings Hydra's plugins that are not everybody's."""


def parse(overrides: list[str]) -> list[Override]:
    """Each argument in its parts.

    Raises:
        UserError: for the first that is not of the form key=value.
    """
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as error:
        raise UserError(
            "this cannot be read as key=value", key=error.override, found=str(error).splitlines()[0],
            expected="key=value, +key=value, key=[a,b], or key=a,b with -m", hint="quote values with spaces or signs: 'key=\"a b\"'",
        ) from error  # fmt: skip


def compose_config(overrides: list[str]) -> DictConfig:
    """The configuration of one job, with Hydra's own part.

    Raises:
        UserError: for the first argument that names no key or option, or does not go with the others.
    """
    _check_groups(overrides)
    try:
        return compose("config", overrides=overrides, return_hydra_config=True)
    except MissingConfigException as error:
        raise _missing_option(error) from error
    except (ConfigCompositionException, HydraException, OmegaConfBaseException) as error:
        raise _bad_override(error, overrides) from error


def quoted(text: str) -> str:
    """A value as an override needs it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def is_hydras(text: str) -> bool:
    """Whether an argument is Hydra's own."""
    return text.lstrip("+~").startswith(("hydra.", "hydra/"))


def _check_groups(overrides: list[str]) -> None:
    """Refuse ``router=null`` and ``router=3``, at which Hydra fails without naming the group."""
    for override in parse(overrides):
        group, value = override.key_or_group, override.value()
        if group in GROUPS and not override.is_delete() and not isinstance(value, (str, list)):
            raise UserError(
                "a group needs an option", key=group or override.input_line, found="null" if value is None else value,
                expected=f"{group or 'GROUP'}=NAME",
            )  # fmt: skip


def _missing_option(error: MissingConfigException) -> UserError:
    group, _, given = str(error.missing_cfg_file).rpartition("/")
    known = sorted(option for option in error.options or [] if "/" not in option)
    return UserError(
        "unknown option", key=group or "config", found=given,
        expected="one of " + ", ".join(known) if known else None, nearest=nearest(given, known), hint=EXTRAS.get(f"{group}={given}"),
    )  # fmt: skip


def _bad_override(error: Exception, overrides: list[str]) -> UserError:
    """Find the override that does not compose with the rest, and the keys that exist where it points."""
    given = zip(overrides, parse(overrides), strict=True)
    # the longest first: router.rank=4 is at fault, not the router=oracle before it
    for text, override in sorted(given, key=lambda pair: -len(pair[1].get_key_element())):
        key = override.get_key_element()
        if key not in str(error) and str(override.key_or_group) not in str(error):
            continue
        others = [other for other in overrides if other is not text]
        try:
            cfg = compose("config", overrides=others, return_hydra_config=True)
        except Exception:  # another override is wrong too: its own message comes first
            continue
        return _unknown_key(str(override.key_or_group), override, cfg, error)
    return UserError(str(error).splitlines()[0])


def _unknown_key(key: str, override: Override, cfg: DictConfig, error: Exception) -> UserError:
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    known = [str(name) for name in node if name != "hydra"] if isinstance(node, DictConfig) else []
    if key == "exp":
        return UserError(
            "an experiment is added, not replaced", key=key, found=override.value(), hint=f"+exp={override.value()}"
        )
    inner = str(getattr(error.__cause__, "full_key", ""))
    if inner.startswith(f"{key}."):  # of a mapping that is the override's value
        known = [str(name) for name in OmegaConf.select(cfg, inner.rpartition(".")[0])]
        return UserError(
            "unknown key", key=inner, found=override.value(), expected="one of " + ", ".join(known),
            nearest=nearest(inner.rpartition(".")[2], known), hint=f"+{inner}=VALUE adds it",
        )  # fmt: skip
    if key in known or (parent and last in known):
        return UserError(str(error).splitlines()[0], key=key, found=override.value())
    known = known if parent else sorted({*known, *REGISTRIES, "exp"})
    return UserError(
        "unknown key", key=key, found=override.value(),
        expected="one of " + ", ".join(known) if known else None, nearest=nearest(last, known),
    )  # fmt: skip
