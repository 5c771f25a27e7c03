"""Hydra's command line, expanded and checked before any work: which jobs there are, and each one's configuration."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, flag_override

from twin_merging.config import REGISTRIES, RunConfig
from twin_merging.errors import UserError
from twin_merging.job_names import job_names
from twin_merging.language_checks import is_language
from twin_merging.overrides import compose_config, is_hydras, parse, quoted
from twin_merging.registry import CONFIGS, load_plugins
from twin_merging.settings import is_set, settled
from twin_merging.validation import validate


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
    with composer():
        load_plugins(_plugins(overrides))
        parsed = parse(overrides)
        single = [text for text, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]
        first = compose_config([one for override in parsed for one in _one_of(override)])
        multirun = multirun or (first.hydra.mode is not None and first.hydra.mode.name == "MULTIRUN")
        if not multirun:
            overrides_of_jobs, arguments = [overrides], overrides
            if len(single) < len(overrides):
                swept = next(override.key_or_group for override in parsed if override.is_sweep_override())
                raise UserError("several values are a sweep", key=swept, hint="add -m (--multirun)")
        else:
            overrides = _as_hydra_takes_it(overrides, parsed)
            arguments = _with_experiment_sweep(overrides, parse(overrides), first)
            overrides_of_jobs = _expand(arguments, first)
        _check_direction(first)
        composed = [compose_config(job) for job in overrides_of_jobs]
        jobs = [validate(settled(cfg, job)) for cfg, job in zip(composed, overrides_of_jobs, strict=True)]
        if multirun and not _is_basic(first):
            _check_search(jobs)
        folder = Path(first.hydra.sweep.dir if multirun else first.hydra.run.dir)
        given = {str(override.key_or_group) for override in parsed}
        launch = Launch(jobs, overrides_of_jobs[0], folder, multirun, arguments, "hydra.sweep.dir" in given)
        if multirun and _is_basic(first):
            launch.batch = [[text for text in job if not is_hydras(text)] for job in overrides_of_jobs]
            own = "hydra.sweep.subdir" in given
            launch.names = _subfolders(composed) if own else job_names(launch.batch)
    return launch


def _one_of(override: Override) -> list[str]:
    """An argument as one job has it: of options that are swept over the first, which has the keys that other arguments are for."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if override.key_or_group in REGISTRIES and override.is_choice_sweep():
        return [f"{override.get_key_element()}={next(override.sweep_string_iterator())}"]
    return []


def _as_hydra_takes_it(overrides: list[str], parsed: list[Override]) -> list[str]:
    """Arguments of a sweep, of which Hydra first composes those that are not swept: one for a key that only swept options have is
    swept too, over its one value."""
    swept = {f"{override.key_or_group}." for override in parsed if _one_of(override) and override.is_sweep_override()}
    inside = [
        not override.is_sweep_override() and str(override.key_or_group).startswith(tuple(swept)) for override in parsed
    ]
    try:
        if any(inside):
            compose_config([str(override.input_line) for override in parsed if not override.is_sweep_override()])
        return overrides
    except UserError:
        return [
            f"{text.partition('=')[0]}=choice({text.partition('=')[2]})" if own else text
            for text, own in zip(overrides, inside, strict=True)
        ]


def compose_each(jobs: list[list[str]]) -> list[RunConfig]:
    """Compose and validate jobs that are given one by one: no sweep, not even an experiment's own.

    Raises:
        UserError: for the first key or value that is unknown or wrong.
    """
    register_resolvers()
    with composer():
        load_plugins(sorted({name for job in jobs for name in _plugins(job)}))
        return [validate(settled(compose_config(job), job)) for job in jobs]


def cache_folder(overrides: list[str]) -> Path:
    """``paths.cache`` as ``overrides`` set it, without asking for an experiment."""
    with composer():
        return Path(compose_config(overrides).paths.cache)


@contextmanager
def composer() -> Iterator[None]:
    """Where Hydra composes what configs/ holds."""
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


def _with_experiment_sweep(overrides: list[str], parsed: list[Override], cfg: DictConfig) -> list[str]:
    """The arguments with what the experiment sweeps besides, but for keys that they set and keys of a group that they choose."""
    given = {str(override.key_or_group) for override in parsed}
    own = cfg.hydra.sweeper.get("params")
    if not own:
        return overrides
    return [
        *(
            f"{key}={value}"
            for key, value in own.items()
            if not is_set(str(key), given) and str(key).partition(".")[0] not in given
        ),
        *overrides,
        "hydra.sweeper.params=null",
    ]


def _expand(arguments: list[str], cfg: DictConfig) -> list[list[str]]:
    """Each job's overrides as Hydra's basic sweeper makes them; of other sweepers, which choose as they go, some of them."""
    if not _is_basic(cfg):
        return _trials(arguments)
    parsed = [override for override in parse(arguments) if not str(override.key_or_group).startswith("hydra.")]
    hydra_only = [text for text in arguments if is_hydras(text)]
    return [job + hydra_only for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def _trials(arguments: list[str]) -> list[list[str]]:
    """The overrides of trials that a search may come to: each value of each key, all other keys at their first."""
    values = {text: _values(text, override) for text, override in zip(arguments, parse(arguments), strict=True)}
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


def _check_search(jobs: list[RunConfig]) -> None:
    """Refuse a search among jobs that have no score on validation rows."""
    if any(map(is_language, jobs)):
        raise UserError(
            "a search chooses by scores on validation rows, and a language model's answers to them are not scored", key="hydra/sweeper",
            expected="basic, which runs all jobs",
        )  # fmt: skip


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
