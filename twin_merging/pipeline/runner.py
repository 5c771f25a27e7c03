"""One job: its stages through the cache, then results.json, the tracker, and its own pictures."""

from __future__ import annotations

import logging
import shutil
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from twin_merging.config import RunConfig, TaskUnknown, trackers
from twin_merging.errors import UserError, full_error
from twin_merging.evaluation.expert_scores import compare, warnings
from twin_merging.evaluation.leaks import leaks
from twin_merging.evaluation.scoring import by_published
from twin_merging.pipeline.cache import Cache, full_disk_explained
from twin_merging.pipeline.environment import git_commit, package_versions, resolve_device
from twin_merging.pipeline.graph import Graph, graph_of
from twin_merging.pipeline.labels import name_of
from twin_merging.pipeline.stage import upstream
from twin_merging.pipeline.stages import Stages
from twin_merging.pipeline.sweep import is_of_sweep, job_identity, turn
from twin_merging.progress import format_seconds
from twin_merging.registry import load_plugins
from twin_merging.reporting.looks import EXAMPLES, LOOKS, draw_looks
from twin_merging.reporting.results import RESULTS, SCHEMA_VERSION, read, write, write_failure
from twin_merging.settings import settled
from twin_merging.trackers import redact
from twin_merging.validation import to_plain, validate

log = logging.getLogger("twin_merging")


def run_job(cfg: DictConfig) -> float | None:
    """Hydra's task function: run one job in its own folder. A failure is written there and never stops other jobs.

    Returns:
        For a sweeper that chooses what to try next, the average normalized score on validation rows, 0 of a job that
        failed; for others None, and no such score is computed.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    configure_logging()
    chooses = not str(hydra.sweeper._target_).endswith("BasicSweeper")
    with turn(folder) as still_to_do:
        if still_to_do:
            _run_in(folder, cfg, list(hydra.overrides.task), chooses)
    return _validation_score(folder) if chooses else None


def _validation_score(folder: Path) -> float:
    """What a job's results.json says; a job without one failed."""
    if not (folder / RESULTS).exists():
        return 0.0
    return read(folder)["validation"]["average_normalized"] or 0.0


def _run_in(folder: Path, cfg: DictConfig, overrides: list[str], chooses: bool) -> None:
    to_file = logging.FileHandler(folder / "run.log")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(to_file)
    label = folder.name if is_of_sweep(folder) else ", ".join(overrides) or "default"
    try:
        load_plugins(list(cfg.get("plugins") or []))
        run = validate(settled(cfg, overrides))
        OmegaConf.save(OmegaConf.create(to_plain(run)), folder / "config.yaml")
        label = execute(run, folder, overrides, chooses)
    except Exception as error:  # whatever it is, the other jobs go on
        kind = "user" if isinstance(error, UserError) else "crash"
        message = str(error) if kind == "user" else f"{type(error).__name__}: {error}"
        log.error("failed: %s", message)
        trace = traceback.format_exc()
        if full_error():
            log.error(trace)
        try:
            with (folder / "run.log").open("a") as file:
                file.write(trace)
            write_failure(folder, label=label, kind=kind, message=message, log=str(folder / "run.log"))
        except OSError as unwritable:  # a full disk, on which the other jobs could not write their results either
            raise UserError(message) from unwritable
    finally:
        log.removeHandler(to_file)
        to_file.close()


def execute(run: RunConfig, folder: Path, overrides: list[str], chooses: bool = False) -> str:
    """Run the stages of ``run`` and write ``folder/results.json``; returns the job's label.

    Args:
        chooses: whether jobs are chosen by their score on validation rows, which is only then computed.
    """
    start = time.perf_counter()
    stages = graph_of(run, Cache(Path(run.paths.cache), run.cache))
    heads = "" if run.heads == "none" else f", {run.heads} heads"
    label = f"{stages.label}{heads}, seed {run.seed}"
    log.info("%s", label)
    if (found := stages.cache.find(stages.result)) is not None:
        _say_cached(stages)
    result = found or stages.get(stages.result)
    record = result.json("result.json")
    if run.experts.normalize_by == "published":
        record = {**record, **by_published(record["tasks"], run.experts.reference or {}, stages.names)}
    results = _results(run, stages, record, overrides)
    results["seconds"] += result.seconds
    results["task_unknown"] = _task_unknown(run, stages, folder)
    results["inference"] = _timing(run, stages)
    if chooses and isinstance(stages, Stages):
        from twin_merging.pipeline import validated

        results["validation"] = stages.get(validated.stage(stages)).json(validated.RECORD)
    with full_disk_explained(folder, "paths.outputs"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in LOOKS:
            if name in result.files:
                shutil.copyfile(result.path(name), folder / name)
        write(folder, results)
        _track(run, results, folder)
    for sentence in warnings(results["experts"], run.experts.tolerance):
        log.warning("  %s", sentence)
    for sentence in results["leaks"]:
        log.warning("  warning: %s", sentence)
    average = record["average_normalized"]
    shown = "undefined" if average is None else f"{average:.2f}"
    log.info("  average normalized %s   (%s)", shown, format_seconds(time.perf_counter() - start))
    return label


def configure_logging() -> None:
    """Messages to standard output, once a process, as a launcher's workers start without any handler."""
    logging.raiseExceptions = False  # a log on a full disk is no second error: the first one is told
    log.setLevel(logging.INFO)
    log.propagate = False
    if not any(isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout for handler in log.handlers):
        log.addHandler(logging.StreamHandler(sys.stdout))


def _say_cached(stages: Graph) -> None:
    counts = Counter(stage.name for stage in upstream(stages.result))
    for name, count in counts.items():
        log.info("  %-10s %-44s cached", name, f"{count} artefacts" if count > 1 else "")


def _results(run: RunConfig, stages: Graph, record: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    computed_now = stages.cache.computed
    return {
        "schema_version": SCHEMA_VERSION, "exp": run.exp, "suite": run.tasks.name, "backbone": name_of(run.backbone),
        "merge_method": run.merge_method.name, "label": stages.label, "heads": run.heads, "seed": run.seed,
        "status": "done", "average_normalized": record["average_normalized"], "average_raw": record["average_raw"],
        "reference": record["reference"], "bytes_stored": record["bytes_stored"], "seconds": record["seconds"],
        "peak_memory": record["peak_memory"], "offline_suite": stages.is_offline_suite, "random_weights": stages.has_random_weights,
        "costs": record["costs"], "tasks": record["tasks"], "routing": record["routing"], "choices": record["choices"],
        "experts": compare(record["tasks"], run.experts.reference or {}, run.experts.tolerance), "leaks": leaks(run),
        "stages": [{**stage, "cached": stage["key"] not in computed_now} for stage in record["stages"]],
        "provenance": {
            "job": job_identity(run, stages.result.key), "config": redact(to_plain(run)), "overrides": redact(overrides), "versions": package_versions(),
            "python": sys.version.split()[0], "git_commit": git_commit(), "device": str(resolve_device(run.device)), "precision": stages.precision,
            "data": record["data"], "checkpoints": record["checkpoints"],
        },
    }  # fmt: skip


def _task_unknown(run: RunConfig, stages: Graph, folder: Path) -> dict[str, Any] | None:
    """What ``evaluation=task_unknown`` found, beside the scores; its stream is copied into the job's folder."""
    if not isinstance(run.evaluation, TaskUnknown) or not isinstance(stages, Stages):
        return None
    from twin_merging.pipeline import task_unknown

    found = stages.get(task_unknown.stage(stages))
    with full_disk_explained(folder, "paths.outputs"):
        shutil.copyfile(found.path(task_unknown.STREAM), folder / task_unknown.STREAM)
    return found.json(task_unknown.RECORD)


def _timing(run: RunConfig, stages: Graph) -> dict[str, Any] | None:
    """Seconds per 1000 items, beside a static model's; None where they are not asked for."""
    if getattr(run.evaluation, "timing", None) is None:
        return None
    if isinstance(stages, Stages):
        from twin_merging.pipeline import timing

        return stages.get(timing.stage(stages)).json(timing.RECORD)
    from twin_merging.pipeline.language import timing as of_answers
    from twin_merging.pipeline.language.stages import LanguageStages

    assert isinstance(stages, LanguageStages)
    return stages.get(of_answers.stage(stages)).json(of_answers.RECORD)


def _track(run: RunConfig, results: dict[str, Any], folder: Path) -> None:
    from twin_merging.reporting.figures import routing_heatmap
    from twin_merging.reporting.tables import results_table

    tracker = trackers[run.tracker.name].load()(run.tracker, folder, f"{run.exp}-{folder.name}", to_plain(run))
    scalars = {
        key: results[key] for key in ("average_normalized", "average_raw", "bytes_stored", "seconds", "peak_memory")
    }
    for name, task in results["tasks"].items():
        scalars |= {f"{name}/{key}": task[key] for key in ("raw", "normalized", "reference")}
    tracker.scalars({name: value for name, value in scalars.items() if value is not None})
    tracker.table("results", results_table([results]))
    if results["routing"]:
        for path in routing_heatmap(results, folder):
            if path.suffix == ".png":
                tracker.image("routing", path)
    for path in draw_looks(results, folder):
        if (
            path.suffix == ".png" and path.stem != EXAMPLES
        ):  # rows of a data set stay here: a tracker may send them away
            tracker.image(path.stem, path)
    tracker.finish()
