"""Hydra's command line, expanded and checked before any work: which jobs there are, and each one's configuration."""

from __future__ import annotations

import secrets
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from twin_merging.config import REGISTRIES, RunConfig
from twin_merging.errors import UserError, nearest
from twin_merging.job_names import job_names
from twin_merging.registry import CONFIGS, load_plugins
from twin_merging.settings import settled
from twin_merging.validation import validate

GROUPS = {*REGISTRIES, "exp", ""}
EXTRAS = {
    "hydra/launcher=joblib": "pip install 'twin_merging[joblib]'",
    "hydra/launcher=submitit_local": "pip install 'twin_merging[submitit]'",
    "hydra/launcher=submitit_slurm": "pip install 'twin_merging[submitit]'",
    "hydra/launcher=ray": "pip install 'twin_merging[ray]' && pip install --no-deps hydra-ray-launcher==1.2.2",
    "hydra/sweeper=optuna": "pip install 'twin_merging[optuna]'",
}
"""What brings Hydra's plugins that are not everybody's."""


@dataclass
class Launch:
    """What a command line asks for: its jobs, checked, and the arguments that make Hydra run exactly those.

    ``first`` are the arguments of the first job alone. Of a sweep whose jobs are known before it starts, ``names`` are
    their folders in ``folder`` and ``batch`` their arguments.
    """

    jobs: list[RunConfig]
    first: list[str]
    folder: Path
    multirun: bool
    arguments: list[str]
    folder_given: bool
    names: list[str] = field(default_factory=list)
    batch: list[list[str]] = field(default_factory=list)

    @property
    def overrides(self) -> list[str]:
        """All arguments, with the folder."""
        key = "hydra.sweep.dir" if self.multirun else "hydra.run.dir"
        return [*self.arguments, f"{key}={quoted(str(self.folder))}"]


def register_resolvers() -> None:
    """``${fresh:}`` is a folder name that no other run has: the time and four random hex digits."""
    OmegaConf.register_new_resolver("fresh", _fresh, use_cache=True, replace=True)


def plan(overrides: list[str], multirun: bool) -> Launch:
    """Compose and validate every job that ``overrides`` ask for.

    A value given on the command line replaces the same key's list in the experiment's own sweep.

    Raises:
        UserError: for the first key or value that is unknown or wrong.
    """
    register_resolvers()
    with _composer():
        load_plugins(_plugins(overrides))
        parsed = _parse(overrides)
        single = [text for text, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]
        first = _compose(single)
        multirun = multirun or (first.hydra.mode is not None and first.hydra.mode.name == "MULTIRUN")
        if not multirun:
            overrides_of_jobs, arguments = [overrides], overrides
            if len(single) < len(overrides):
                swept = next(override.key_or_group for override in parsed if override.is_sweep_override())
                raise UserError("several values are a sweep", key=swept, hint="add -m (--multirun)")
        else:
            arguments = _with_experiment_sweep(overrides, parsed, first)
            overrides_of_jobs = _expand(arguments, first)
        _check_direction(first)
        composed = [_compose(job) for job in overrides_of_jobs]
        jobs = [validate(settled(cfg, job)) for cfg, job in zip(composed, overrides_of_jobs, strict=True)]
        folder = Path(first.hydra.sweep.dir if multirun else first.hydra.run.dir)
        given = {str(override.key_or_group) for override in parsed}
        launch = Launch(jobs, overrides_of_jobs[0], folder, multirun, arguments, "hydra.sweep.dir" in given)
        if multirun and _is_basic(first):
            launch.batch = [[text for text in job if not _is_hydras(text)] for job in overrides_of_jobs]
            own = "hydra.sweep.subdir" in given
            launch.names = _subfolders(composed) if own else job_names(launch.batch)
    return launch


def compose_each(jobs: list[list[str]]) -> list[RunConfig]:
    """Compose and validate jobs that are given one by one: no sweep, not even an experiment's own.

    Raises:
        UserError: for the first key or value that is unknown or wrong.
    """
    register_resolvers()
    with _composer():
        load_plugins(sorted({name for job in jobs for name in _plugins(job)}))
        return [validate(settled(_compose(job), job)) for job in jobs]


def cache_folder(overrides: list[str]) -> Path:
    """``paths.cache`` as ``overrides`` set it, without asking for an experiment."""
    with _composer():
        return Path(_compose(overrides).paths.cache)


@contextmanager
def _composer():
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS), job_name="run"):
        yield


def _fresh() -> str:
    return f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(2)}"


def _plugins(overrides: list[str]) -> list[str]:
    """The modules that ``plugins`` names: on the command line, else in the experiment's own file.

    They are needed before composing, since an override may name an option that only a plugin brings.
    """
    values = dict(text.lstrip("+").split("=", 1) for text in overrides if "=" in text)
    if "plugins" in values:
        return [name.strip() for name in values["plugins"].strip("[]").split(",") if name.strip()]
    experiment = CONFIGS / "exp" / f"{values.get('exp')}.yaml"
    return list(OmegaConf.select(OmegaConf.load(experiment), "plugins") or []) if experiment.is_file() else []


def _parse(overrides: list[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as error:
        raise UserError(
            "this cannot be read as key=value", key=error.override, found=str(error).splitlines()[0],
            expected="key=value, +key=value, key=[a,b], or key=a,b with -m", hint="quote values with spaces or signs: 'key=\"a b\"'",
        ) from error  # fmt: skip


def _check_groups(overrides: list[str]) -> None:
    """Refuse ``router=null`` and ``router=3``, at which Hydra fails without naming the group."""
    for override in _parse(overrides):
        group, value = override.key_or_group, override.value()
        if group in GROUPS and not override.is_delete() and not isinstance(value, (str, list)):
            raise UserError(
                "a group needs an option", key=group or override.input_line, found="null" if value is None else value,
                expected=f"{group or 'GROUP'}=NAME",
            )  # fmt: skip


def _with_experiment_sweep(overrides: list[str], parsed: list[Override], cfg: DictConfig) -> list[str]:
    given = {override.key_or_group for override in parsed}
    own = cfg.hydra.sweeper.get("params")
    if not own:
        return overrides
    return [
        *(f"{key!s}={value}" for key, value in own.items() if key not in given),
        *overrides,
        "hydra.sweeper.params=null",
    ]


def _expand(arguments: list[str], cfg: DictConfig) -> list[list[str]]:
    """Each job's overrides as Hydra's basic sweeper makes them; of other sweepers, which choose as they go, some of them."""
    if not _is_basic(cfg):
        return _trials(arguments)
    parsed = [override for override in _parse(arguments) if not str(override.key_or_group).startswith("hydra.")]
    hydra_only = [text for text in arguments if _is_hydras(text)]
    return [job + hydra_only for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def _trials(arguments: list[str]) -> list[list[str]]:
    """The overrides of trials that a search may come to: each value of each key, all other keys at their first."""
    values = {text: _values(text, override) for text, override in zip(arguments, _parse(arguments), strict=True)}
    first = {text: found[0] for text, found in values.items()}
    others = [{**first, text: value} for text, found in values.items() for value in found[1:]]
    return [list(trial.values()) for trial in (first, *others)]


def _values(text: str, override: Override) -> list[str]:
    """An override for each value that it sweeps over, or for both ends of an interval."""
    if not override.is_sweep_override():
        return [text]
    key, swept = override.get_key_element(), override.value()
    if override.is_discrete_sweep():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [f"{key}={value}" for value in (swept.start, swept.end)]  # type: ignore[union-attr]


def _is_basic(cfg: DictConfig) -> bool:
    return str(cfg.hydra.sweeper._target_).endswith("BasicSweeper")


def _check_direction(cfg: DictConfig) -> None:
    """Refuse a sweeper that would look for the worst job, as Optuna's does unless told otherwise."""
    direction = cfg.hydra.sweeper.get("direction")
    if direction is not None and str(getattr(direction, "name", direction)) != "maximize":
        raise UserError(
            "jobs are scored by their average normalized score on validation rows: more is better", key="hydra.sweeper.direction",
            found=getattr(direction, "name", direction), expected="maximize", hint="add hydra.sweeper.direction=maximize",
        )  # fmt: skip


def _is_hydras(text: str) -> bool:
    return text.lstrip("+~").startswith(("hydra.", "hydra/"))


def _subfolders(jobs: list[DictConfig]) -> list[str]:
    """The jobs' folders by the user's own pattern.

    Raises:
        UserError: if two jobs would share one.
    """
    names: list[str] = []
    for number, cfg in enumerate(jobs):
        with flag_override(cfg, ["struct", "readonly"], False):
            cfg.hydra.job.num = cfg.hydra.job.id = number
        name = str(cfg.hydra.sweep.subdir)
        if name in names:
            raise UserError(
                "two jobs of a sweep would share a folder", key="hydra.sweep.subdir", found=name,
                expected="a pattern that names each job apart", hint="leave it out: folders are named by what differs",
            )  # fmt: skip
        names.append(name)
    return names


def _compose(overrides: list[str]) -> DictConfig:
    _check_groups(overrides)
    try:
        return compose("config", overrides=overrides, return_hydra_config=True)
    except MissingConfigException as error:
        raise _missing_option(error) from error
    except (ConfigCompositionException, HydraException, OmegaConfBaseException) as error:
        raise _bad_override(error, overrides) from error


def _missing_option(error: MissingConfigException) -> UserError:
    group, _, given = str(error.missing_cfg_file).rpartition("/")
    known = sorted(option for option in error.options or [] if "/" not in option)
    return UserError(
        "unknown option", key=group or "config", found=given,
        expected="one of " + ", ".join(known) if known else None, nearest=nearest(given, known), hint=EXTRAS.get(f"{group}={given}"),
    )  # fmt: skip


def _bad_override(error: Exception, overrides: list[str]) -> UserError:
    """Find the override that does not compose with the rest, and the keys that exist where it points."""
    given = zip(overrides, _parse(overrides), strict=True)
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
    if key in known or (parent and last in known):
        return UserError(str(error).splitlines()[0], key=key, found=override.value())
    known = known if parent else sorted({*known, *REGISTRIES, "exp"})
    return UserError(
        "unknown key", key=key, found=override.value(),
        expected="one of " + ", ".join(known) if known else None, nearest=nearest(last, known),
    )  # fmt: skip


def quoted(text: str) -> str:
    """A value as an override needs it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
