"""A killed run goes on where it was, to the same numbers bit for bit; two at once share the work."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest
from commands import finish, numbers, results, start, succeed, wait_until
from sweeps import Finished

ALONE = ("merge_method=finetuned", "tasks.names=[size]", "hydra.run.dir=run")


@pytest.fixture
def one(small: list[str]) -> list[str]:
    """One task's expert and its scores."""
    return [*(argument for argument in small if "tasks.names" not in argument), *ALONE]


def kill_after_a_checkpoint(arguments: list[str], folder: Path) -> Path:
    """Kill a run as soon as it has a whole checkpoint; returns the folder with the checkpoints."""
    process = start(*arguments, folder=folder)
    unfinished = folder / "outputs/cache/unfinished"
    assert wait_until(lambda: any(unfinished.glob("expert-*/checkpoint-*/complete")), process), finish(process).text
    process.send_signal(signal.SIGKILL)
    assert finish(process).code == -signal.SIGKILL
    (scratch,) = unfinished.glob("expert-*")
    return scratch


def expert_hash(folder: Path, name: str) -> str:
    """SHA-256 of an expert's weights, as the results below ``folder`` have it; other tests add experts to a shared cache."""
    found = {result["provenance"]["checkpoints"][f"expert {name}"] for result in results(folder).values()}
    assert len(found) == 1
    return found.pop()


def test_killed_fine_tuning_goes_on_from_its_checkpoint(one: list[str], finished: Finished, tmp_path: Path):
    scratch = kill_after_a_checkpoint(one, tmp_path)
    assert not list(tmp_path.glob("outputs/cache/expert/*/manifest.json"))
    outcome = succeed(*one[:-1], "hydra.run.dir=again", folder=tmp_path)
    assert outcome.lines("size", "goes on from step"), outcome.text
    assert expert_hash(tmp_path, "size") == expert_hash(finished.folder, "size")
    assert not scratch.exists()


def test_a_checkpoint_that_lost_a_file_is_not_used(one: list[str], finished: Finished, tmp_path: Path):
    scratch = kill_after_a_checkpoint(one, tmp_path)
    for checkpoint in scratch.glob("checkpoint-*"):  # as a kill leaves it while an old checkpoint is being removed
        (checkpoint / "optimizer.pt").unlink(missing_ok=True)
    outcome = succeed(*one[:-1], "hydra.run.dir=again", folder=tmp_path)
    assert not outcome.lines("goes on from step")
    assert expert_hash(tmp_path, "size") == expert_hash(finished.folder, "size")


@pytest.mark.slow
def test_kills_at_any_moment_change_nothing(small: list[str], finished: Finished, tmp_path: Path):
    arguments = ["merge_method=twin", *small]
    chance = random.Random(0)
    for attempt in range(5):
        process = start(*arguments, f"hydra.run.dir=killed{attempt}", folder=tmp_path)
        wait_until(lambda: (tmp_path / "outputs/cache").exists(), process)
        try:
            process.wait(timeout=chance.uniform(1, 12))
        except Exception:
            process.send_signal(signal.SIGKILL)
        finish(process)
    succeed(*arguments, "hydra.run.dir=last", folder=tmp_path)
    assert numbers(results(tmp_path / "last")["twin", "oracle"]) == numbers(results(finished.folder)["twin", "oracle"])
    for path in tmp_path.rglob("results.json"):  # whole, whichever attempt wrote it
        assert json.loads(path.read_text())["status"] == "done"


def test_two_at_once_fine_tune_each_expert_once(one: list[str], finished: Finished, tmp_path: Path):
    first = start(*one[:-1], "hydra.run.dir=first", folder=tmp_path)
    second = start(*one[:-1], "hydra.run.dir=second", folder=tmp_path)
    outcomes = [finish(first), finish(second)]
    assert [outcome.code for outcome in outcomes] == [0, 0], [outcome.text for outcome in outcomes]
    for stage in ("data", "base", "expert", "encode", "result"):
        computed = [line for outcome in outcomes for line in outcome.lines(f"  {stage} ", "computed in")]
        assert len(computed) == 1, (stage, computed)
    assert expert_hash(tmp_path, "size") == expert_hash(finished.folder, "size")


def test_the_first_run_of_a_machine_trains_the_same_expert(one: list[str], finished: Finished, tmp_path: Path):
    """Which measures how fast products are, in the middle of it."""
    succeed(*one, folder=tmp_path, env={"XDG_CACHE_HOME": str(tmp_path / "user")})
    assert (tmp_path / "user/twin_merging/speeds.json").exists()
    assert expert_hash(tmp_path, "size") == expert_hash(finished.folder, "size")
