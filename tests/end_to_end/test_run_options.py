"""Trackers, the modes of the cache, and interrupts."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from commands import finish, numbers, results, run, snapshot, start, succeed, wait_until
from sweeps import Finished


@pytest.mark.parametrize("tracker", ["jsonl", "tensorboard", "wandb", "none"])
def test_tracker(tracker: str, reuse: list[str], finished: Finished, tmp_path: Path):
    env = {"WANDB_API_KEY": "", "WANDB_DIR": "", "WANDB_SILENT": "true"}
    outcome = finish(
        start(f"tracker={tracker}", "merge_method=twin", *reuse, "hydra.run.dir=run", folder=tmp_path, env=env)
    )
    assert outcome.code == 0, outcome.text
    written = {path.relative_to(tmp_path / "run").parts[0] for path in (tmp_path / "run").rglob("*") if path.is_file()}
    wanted = {"jsonl": "metrics.jsonl", "tensorboard": "tensorboard", "wandb": "wandb", "none": "results.json"}
    assert written & set(wanted.values()) == {wanted[tracker], "results.json"}
    assert numbers(results(tmp_path / "run")["twin", "oracle"]) == numbers(results(finished.folder)["twin", "oracle"])
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "outputs"}


def test_cache_read_uses_what_is_there_and_adds_nothing(reuse: list[str], finished: Finished, tmp_path: Path):
    before = snapshot(finished.cache)
    outcome = succeed("merge_method=task_arithmetic", "merge_method.scaling=0.7", *reuse, "cache=read", folder=tmp_path)
    assert outcome.lines("  merge ", "computed in")
    assert not outcome.lines("  expert ", "computed in")
    assert snapshot(finished.cache) == before


def test_cache_list_counts_and_cache_clean_removes(small: list[str], tmp_path: Path):
    alone = [
        *(argument for argument in small if "tasks.names" not in argument),
        "tasks.names=[colour]",
        "finetune.epochs=1",
    ]
    succeed(
        "merge_method=pretrained", *[argument for argument in alone if argument != "finetune.epochs=8"], folder=tmp_path
    )
    for command in ("cache=list", "+cache=list"):
        listing = run(command, folder=tmp_path)
        assert listing.code == 0
        rows = {line.split()[0]: line.split()[1] for line in listing.out.splitlines()[1:]}
        assert rows["expert"] == rows["data"] == rows["base"] == "1"
    kept = snapshot(tmp_path / "outputs/runs")
    cleaned = run("cache=clean", folder=tmp_path)
    assert cleaned.code == 0
    assert "freed" in cleaned.out
    assert not snapshot(tmp_path / "outputs/cache")
    assert snapshot(tmp_path / "outputs/runs") == kept  # results are no cache


def test_cache_clean_of_another_folder(tmp_path: Path):
    outcome = run("cache=clean", "paths.cache=elsewhere", folder=tmp_path)
    assert outcome.code == 0
    assert str(tmp_path / "elsewhere") in outcome.out


def test_an_interrupted_run_says_that_nothing_is_lost(small: list[str], tmp_path: Path):
    process = start("merge_method=finetuned", *small, folder=tmp_path)
    assert wait_until(lambda: any(tmp_path.glob("outputs/cache/unfinished/expert-*")), process)
    os.kill(process.pid, signal.SIGINT)
    outcome = finish(process)
    assert outcome.code == 130, outcome.text
    assert "goes on from there" in outcome.err
    assert "Traceback" not in outcome.text, outcome.text


def test_a_job_writes_where_it_is_told(reuse: list[str], tmp_path: Path):
    succeed("merge_method=pretrained", *reuse, "paths.outputs=there", folder=tmp_path)
    (written,) = tmp_path.glob("there/runs/custom/*/results.json")
    assert json.loads(written.read_text())["merge_method"] == "pretrained"
    assert {path.name for path in tmp_path.iterdir()} == {"there"}
