"""A sweep that is started again goes on in its folder: what is done stays as it is, the rest runs, nothing is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from commands import finish, lasting, refused, results, run, snapshot, start, succeed, wait_until
from sweeps import Finished

RESUME = "sweep.resume=true"
KILLS = int(os.environ.get("TWIN_KILLS", "3"))  # of the slow test; more take longer
PLUGIN = """
from dataclasses import dataclass
from pathlib import Path
from twin_merging.config import merge_methods

@dataclass
class Options:
    name: str = "fragile"
    scaling: float = 1.0

@merge_methods.register("fragile", options=Options)
def fragile(base, deltas, options):
    if Path("broken").exists() and options.scaling > 1:
        raise RuntimeError("out of order")
    return base + options.scaling * deltas.mean(0)
"""


def sweeps(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("sweep.json"))


def done_in(folder: Path) -> list[Path]:
    """The results of sweeps, where folders of jobs may go meanwhile; the cache is left out."""
    walk = os.walk(folder / "outputs/multiruns")  # passes over what is gone, unlike rglob
    return [Path(place, name) for place, _, files in walk for name in files if name == "results.json"]


def jobs(sweep: Path) -> dict[str, dict]:
    """Each job's lasting results by its folder."""
    return {path.parent.name: lasting(json.loads(path.read_text())) for path in sorted(sweep.glob("*/results.json"))}


def test_a_job_is_done_once(reuse: list[str], tmp_path: Path):
    begin = ["-m", *reuse, "merge_method=pretrained,weight_averaging", RESUME]
    succeed(*begin, folder=tmp_path)
    (sweep,) = sweeps(tmp_path)
    assert sorted(jobs(sweep)) == ["0-pretrained", "1-weight_averaging"]
    (sweep / "1-weight_averaging/results.json").unlink()  # as a kill leaves it: begun and not done
    done = snapshot(sweep / "0-pretrained")
    outcome = succeed(*begin, folder=tmp_path)
    assert outcome.lines("1 of 2 jobs are done already", str(sweep.relative_to(tmp_path)))
    assert outcome.lines("each job's log: ", str(sweep.relative_to(tmp_path) / "JOB/run.log"))
    assert sweeps(tmp_path) == [sweep]
    assert snapshot(sweep / "0-pretrained") == done
    assert sorted(jobs(sweep)) == ["0-pretrained", "1-weight_averaging"]
    assert (sweep / "attempts/1-weight_averaging.1/config.yaml").is_file()  # nothing is overwritten
    whole = snapshot(sweep)
    outcome = succeed(*begin, folder=tmp_path)
    assert outcome.lines("2 of 2 jobs are done already")
    assert outcome.lines("weight_averaging", "oracle")  # the table of all, though none ran
    again = snapshot(sweep)
    assert {**again, "metrics.jsonl": None} == {**whole, "metrics.jsonl": None}  # to which the report was added


def test_without_resume_a_sweep_gets_a_folder_of_its_own(reuse: list[str], tmp_path: Path):
    arguments = ["-m", *reuse, "merge_method=pretrained,weight_averaging"]
    succeed(*arguments, folder=tmp_path)
    (sweep,) = sweeps(tmp_path)
    outcome = succeed(*arguments, folder=tmp_path)
    assert not outcome.lines("sweep.resume=true")  # nothing is unfinished
    assert len(sweeps(tmp_path)) == 2
    for path in sorted(tmp_path.rglob("1-*/results.json")):
        path.unlink()
    outcome = succeed(*arguments, folder=tmp_path)
    assert outcome.lines("was begun in", "sweep.resume=true goes on with it")
    assert len(sweeps(tmp_path)) == 3
    assert sweep in sweeps(tmp_path)


def test_a_failed_job_runs_again_and_the_rest_is_done(reuse: list[str], tmp_path: Path):
    (tmp_path / "my_fragile.py").write_text(PLUGIN)
    (tmp_path / "broken").touch()
    arguments = ["-m", *reuse, "plugins=[my_fragile]", "merge_method=fragile", "merge_method.scaling=1,2,0.5", RESUME]
    outcome = run(*arguments, "hydra.sweep.dir=sweep", folder=tmp_path)
    assert outcome.code == 1, outcome.text
    assert outcome.lines("failed: 1-scaling=2: ", "out of order")
    assert outcome.lines("log: ", "1-scaling=2/run.log")
    assert sorted(jobs(tmp_path / "sweep")) == ["0-scaling=1", "2-scaling=0.5"]
    (tmp_path / "broken").unlink()
    outcome = succeed(*arguments, "hydra.sweep.dir=sweep", folder=tmp_path)
    assert outcome.lines("2 of 3 jobs are done already")
    assert not outcome.lines("failed: ")
    assert sorted(jobs(tmp_path / "sweep")) == ["0-scaling=1", "1-scaling=2", "2-scaling=0.5"]
    assert "out of order" in (tmp_path / "sweep/attempts/1-scaling=2.1/run.log").read_text()


def test_results_of_other_code_are_not_taken(reuse: list[str], tmp_path: Path):
    plugin = tmp_path / "my_fragile.py"
    plugin.write_text(PLUGIN)
    arguments = ["-m", *reuse, "plugins=[my_fragile]", "merge_method=fragile", "merge_method.scaling=1,2", RESUME]
    succeed(*arguments, "hydra.sweep.dir=here", folder=tmp_path)
    succeed(*arguments, folder=tmp_path)
    plugin.write_text(PLUGIN.replace("deltas.mean(0)", "deltas.sum(0)"))
    before = snapshot(tmp_path / "here")
    refused(
        *arguments, "hydra.sweep.dir=here", folder=tmp_path,
        says=["hydra.sweep.dir", "the same jobs, but of other settings, data or code"],
    )  # fmt: skip
    outcome = succeed(*arguments, folder=tmp_path)
    assert outcome.lines("0 of 2 jobs are done already")
    assert len(sweeps(tmp_path / "outputs")) == 2
    assert snapshot(tmp_path / "here") == before


def test_a_folder_of_another_sweep_is_refused(reuse: list[str], finished: Finished, tmp_path: Path):
    succeed("-m", *reuse, "merge_method=pretrained", "hydra.sweep.dir=kept", folder=tmp_path)
    succeed(*reuse, "merge_method=pretrained", "hydra.run.dir=alone", folder=tmp_path)
    before = snapshot(tmp_path)
    other = ["-m", *reuse, "merge_method=finetuned", RESUME]
    refused(*other, "hydra.sweep.dir=kept", folder=tmp_path, says=["hydra.sweep.dir", "a sweep of other jobs"])
    refused(*other, "hydra.sweep.dir=alone", folder=tmp_path, says=["hydra.sweep.dir", "no sweep.json"])
    kept = snapshot(tmp_path)
    assert {path: kept[path] for path in before} == before


def test_one_job_is_no_sweep(reuse: list[str], tmp_path: Path):
    refused(*reuse, "merge_method=pretrained", RESUME, folder=tmp_path, says=["sweep.resume", "-m"])


def test_two_that_resume_at_once_do_each_job_once(reuse: list[str], finished: Finished, tmp_path: Path):
    arguments = ["-m", *reuse, "merge_method=pretrained,weight_averaging,task_arithmetic", RESUME]
    processes = [start(*arguments, folder=tmp_path) for _ in range(2)]
    outcomes = [finish(process) for process in processes]
    assert [outcome.code for outcome in outcomes] == [0, 0], [outcome.text for outcome in outcomes]
    (sweep,) = sweeps(tmp_path)
    assert len(jobs(sweep)) == 3
    assert not (sweep / "attempts").exists()
    counts = [line.split()[0] for outcome in outcomes for line in outcome.lines("of 3 jobs are done already")]
    assert sorted(counts) == ["0", "3"]
    same = {key: lasting(result)["tasks"] for key, result in results(sweep).items()}
    before = results(finished.folder)
    assert same == {key: before[key]["tasks"] for key in same}


@pytest.mark.slow
def test_a_sweep_that_is_killed_again_and_again_ends_as_one_left_alone(small: list[str], tmp_path: Path):
    """Each kill takes the whole process group. ``TWIN_KILLS=10`` is the long version."""
    fast = {"finetune.epochs": "2", "router.epochs": "3", "tasks.names": "[colour,size]", "sparsifier.rank": "1,4"}
    arguments = [
        "-m", *(argument for argument in small if argument.split("=")[0] not in fast),
        *(f"{key}={value}" for key, value in fast.items()),
        "merge_method=ties,task_arithmetic,twin", "evaluation.heads=oracle,routed", "seed=0,1", RESUME,
    ]  # fmt: skip
    alone, killed, chance = tmp_path / "alone", tmp_path / "killed", random.Random(7)
    for folder in (alone, killed):
        folder.mkdir()
    assert finish(start(*arguments, folder=alone)).code == 0
    counts = []
    for attempt in range(KILLS):  # spread over the sweep: wherever the jobs before the drawn one are done
        process, job = start(*arguments, folder=killed, group=True), chance.uniform(attempt, attempt + 1) * 23 / KILLS
        if attempt % 4 == 3:  # or while it imports and plans
            time.sleep(chance.uniform(0, 5))
        else:
            wait_until(lambda job=job: len(done_in(killed)) >= job, process)
            time.sleep(chance.uniform(0, 0.7))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        assert finish(process).code == -signal.SIGKILL, "the kill came too late to show anything"
        counts.append(len(done_in(killed)))
    print("results after each kill:", counts)
    outcome = finish(start(*arguments, folder=killed))
    assert outcome.code == 0, outcome.text
    assert outcome.lines(f"{counts[-1]} of 24 jobs are done already")
    (left_alone,), (resumed,) = sweeps(alone), sweeps(killed)
    assert len(jobs(left_alone)) == 24
    found, expected = jobs(resumed), jobs(left_alone)
    assert found.keys() == expected.keys()
    for name, job in expected.items():
        other = {key: (found[name].get(key), value) for key, value in job.items() if found[name].get(key) != value}
        assert not other, name
    assert found == expected
