"""The command line of ``run.py``: what Hydra understands, checked before work starts, with a report at the end."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from twin_merging.errors import UserError, exit_code, full_error
from twin_merging.help import help_text, usage_text
from twin_merging.registry import CONFIGS, load_plugins

MULTIRUN = ("-m", "--multirun")


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 done; 1 a job failed, the others finished; 2 bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors come here instead of being printed by Hydra
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return exit_code(lambda: _main(arguments), "what was finished is cached, and the same command goes on from there")


def _main(arguments: list[str]) -> int:
    if not arguments:
        print(usage_text(CONFIGS), file=sys.stderr)
        return 2
    if "--help" in arguments or "-h" in arguments:
        load_plugins([])
        print(help_text(CONFIGS))
        return 0
    from hydra._internal.utils import get_args_parser

    from twin_merging.compose import plan, register_resolvers

    args, unknown = get_args_parser().parse_known_args(arguments)
    if unknown:
        raise UserError("unknown flag", key=unknown[0], hint="python run.py --help")
    flags = [argument for argument in arguments if argument not in args.overrides]
    if (command := _cache_command(args.overrides)) is not None:
        return command
    register_resolvers()
    if args.hydra_help or args.info or args.shell_completion:
        return _hydra(flags, args.overrides)
    launch = plan(args.overrides, args.multirun)
    if args.cfg:
        return _hydra([flag for flag in flags if flag not in MULTIRUN], launch.first)
    if any(job.paths.mirror for job in launch.jobs):
        from twin_merging.mirror.needs import check_mirrored

        check_mirrored(launch.jobs, [*(["-m"] if launch.multirun else []), *args.overrides])
    return _run(launch, [flag for flag in flags if flag not in MULTIRUN])


def _run(launch: Any, flags: list[str]) -> int:
    from twin_merging.pipeline.cache import full_disk_explained
    from twin_merging.pipeline.preflight import check_inputs
    from twin_merging.pipeline.runner import configure_logging

    configure_logging()
    resume = launch.jobs[0].sweep.resume
    if resume and not launch.names:
        raise UserError(
            "only a sweep whose jobs are known before it starts can be resumed", key="sweep.resume", found="true",
            hint="hydra/sweeper=basic with several jobs" if launch.multirun else "add -m (--multirun)",
        )  # fmt: skip
    if not resume and launch.folder.exists() and any(launch.folder.rglob("results.json")):
        key = "hydra.sweep.dir" if launch.multirun else "hydra.run.dir"
        raise UserError(
            "this folder has results already and they are never overwritten", key=key, found=launch.folder,
            hint="sweep.resume=true goes on with the same sweep" if launch.names else None,
        )  # fmt: skip
    _describe(launch, "" if resume else f" in {launch.folder}")
    keys = check_inputs(launch.jobs)
    with full_disk_explained(launch.folder, "paths.outputs"):
        if launch.names:
            return _sweep(launch, flags, keys, resume)
        _hydra([*flags, *(["--multirun"] if launch.multirun else [])], launch.overrides)
        return _report(launch)


def _sweep(launch: Any, flags: list[str], keys: list[str], resume: bool) -> int:
    """Run those jobs of a sweep that are not done, and report on all."""
    import logging

    from twin_merging.overrides import quoted
    from twin_merging.pipeline.sweep import Job, job_identity, opened, unfinished

    log = logging.getLogger("twin_merging")
    given = zip(launch.names, launch.batch, launch.jobs, keys, strict=True)
    jobs = [Job(name, tuple(overrides), job_identity(run, key)) for name, overrides, run, key in given]
    if not resume and not launch.folder_given and (begun := unfinished(launch.folder, jobs)):
        log.info("the same sweep was begun in %s: sweep.resume=true goes on with it", begun)
    with opened(launch.folder, jobs, resume=resume, search=not launch.folder_given) as sweep:
        launch.folder = sweep.folder
        batch = [[*job.overrides, f"hydra.sweep.subdir={quoted(job.name)}"] for job in sweep.pending]
        if batch:
            log.info("each job's log: %s", launch.folder / "JOB" / "run.log")  # a cluster's jobs print nothing here
            try:
                _hydra([*flags, "--multirun"], launch.overrides, batch)
            except UserError:
                raise
            except Exception as error:  # a launcher's worker was killed, say: what is done is done
                if full_error():
                    raise
                log.error("the launcher stopped: %s: %s", type(error).__name__, error)
        sweep.note_missing()
        return _report(launch)


def _hydra(flags: list[str], overrides: list[str], batch: list[list[str]] | None = None) -> int:
    """Hand over to Hydra, which composes each job anew and gives it to its launcher.

    Args:
        batch: each job's overrides, where they are not to be made from ``overrides``.
    """
    from contextlib import ExitStack
    from unittest.mock import patch

    import hydra
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    from twin_merging.pipeline.runner import run_job

    sys.argv = [sys.argv[0], *flags, *overrides]
    try:
        with ExitStack() as patches:
            # The sweeper would compose each job once more only to see that it composes, which ``plan`` has seen.
            patches.enter_context(patch.object(BasicSweeper, "validate_batch_is_legal"))
            if batch is not None:
                split = BasicSweeper.split_overrides_to_chunks
                jobs = staticmethod(lambda overrides, most: list(split(batch, most)))
                patches.enter_context(patch.object(BasicSweeper, "split_arguments", jobs))
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(run_job)()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def _describe(launch: Any, where: str) -> None:
    """Print the configuration, a line a group; each job's own is saved as config.yaml in its folder."""
    import logging

    from twin_merging.validation import to_plain

    log, first = logging.getLogger("twin_merging"), to_plain(launch.jobs[0])
    plural = f"{len(launch.jobs)} jobs" if len(launch.jobs) > 1 else "1 job"
    if launch.multirun and not launch.names:
        plural = "a search"
    log.info("%s: %s%s", first["exp"], plural, where)
    for key in first:
        values = [to_plain(job)[key] for job in launch.jobs]
        different = list(dict.fromkeys(_short(each) for each in values))
        log.info("  %-13s%s", key, " | ".join(different))


def _short(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    settings = [
        f"{key}={_short(inner) if not isinstance(inner, dict) else f'({_short(inner)})'}"
        for key, inner in value.items()
        if key != "name"
    ]
    return " ".join([str(value.get("name", "")), *settings]).strip()


def _report(launch: Any) -> int:
    """Tables and figures of all jobs; the exit code is 1 if one failed, 2 if all did and for bad input."""
    from rich.console import Console

    from twin_merging.config import trackers
    from twin_merging.reporting.report import print_report, report
    from twin_merging.validation import to_plain

    made = report(launch.folder)
    print_report(made, Console())
    if launch.multirun and made.table is not None:
        first = launch.jobs[0]
        tracker = trackers[first.tracker.name].load()(
            first.tracker, launch.folder, f"{first.exp}-report", to_plain(first)
        )
        tracker.table("results", made.table)
        for path in made.figures:
            if path.suffix == ".png":
                tracker.image(Path(path).stem, path)
        tracker.finish()
    if not made.failures:
        return 0
    return 2 if not made.results and all(failure["kind"] == "user" for failure in made.failures) else 1


def _cache_command(overrides: list[str]) -> int | None:
    """``cache=list`` and ``cache=clean``, which run no job."""
    wanted = [override for override in overrides if override.lstrip("+") in ("cache=list", "cache=clean")]
    if not wanted:
        return None
    from twin_merging.compose import cache_folder
    from twin_merging.pipeline.cache import clean, listing
    from twin_merging.reporting.tables import human_bytes

    root = cache_folder([override for override in overrides if override not in wanted])
    if wanted[0].endswith("list"):
        print(f"cache: {root.absolute()}")
        for stage, count, size in listing(root):
            print(f"  {stage:<12}{count:>5} artefacts {human_bytes(size):>10}")
    else:
        print(f"cache: {human_bytes(clean(root))} freed in {root.absolute()}")
    return 0
