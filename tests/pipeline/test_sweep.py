"""A sweep's folder: whose it is, what of it is done, and that nothing in it is lost or done twice."""

from __future__ import annotations

import json
import logging
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock
from reporting.synthetic import make_result

from twin_merging.compose import plan
from twin_merging.errors import UserError
from twin_merging.locks import alone
from twin_merging.pipeline import sweep as sweep_module
from twin_merging.pipeline.sweep import (
    LOCKS,
    MANIFEST,
    Job,
    is_of_sweep,
    job_identity,
    opened,
    turn,
    unfinished,
)
from twin_merging.reporting.results import ATTEMPTS, FAILURE, RESULTS, write, write_failure

JOBS = [
    Job(f"{number}-{name}", (f"merge_method={name}",), f"id-{name}") for number, name in enumerate(("ties", "twin"))
]
OTHERS = [Job(job.name, job.overrides, f"other-{job.identity}") for job in JOBS]
RENAMED = [Job(f"x{job.name}", job.overrides, job.identity) for job in JOBS]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "twin_merging")
    return caplog


def finish(folder: Path, job: Job, **changes) -> Path:
    """What a job that is done leaves."""
    place = folder / job.name
    place.mkdir(parents=True, exist_ok=True)
    return write(place, make_result(provenance={"job": job.identity}) | changes)


def begin(folder: Path, jobs: list[Job] = JOBS) -> Path:
    """A sweep of which the first job is done and the second has begun."""
    with opened(folder, jobs, resume=False, search=False) as sweep:
        assert sweep.pending == tuple(jobs)
    finish(folder, jobs[0])
    (folder / jobs[1].name).mkdir()
    (folder / jobs[1].name / "run.log").write_text("begun")
    return folder


def resumed(folder: Path, jobs: list[Job] = JOBS, search: bool = False) -> tuple[Path, list[str]]:
    with opened(folder, jobs, resume=True, search=search) as sweep:
        return sweep.folder, [job.name for job in sweep.pending]


def test_what_is_done_stays_and_what_was_begun_is_kept_aside(tmp_path: Path, said):
    sweep = begin(tmp_path / "sweep")
    done = (sweep / "0-ties" / RESULTS).read_bytes()
    for attempt in (1, 2):
        assert resumed(sweep) == (sweep, ["1-twin"])
        assert "1 of 2 jobs are done already in" in said.text
        assert (sweep / ATTEMPTS / f"1-twin.{attempt}" / "run.log").read_text() == "begun"
        assert not (sweep / "1-twin").exists()
        (sweep / "1-twin").mkdir()
        (sweep / "1-twin" / "run.log").write_text("begun")
    assert (sweep / "0-ties" / RESULTS).read_bytes() == done
    finish(sweep, JOBS[1])
    assert resumed(sweep) == (sweep, [])
    assert len(list((sweep / ATTEMPTS).iterdir())) == 2


@pytest.mark.parametrize(
    "content", ["", "{}", json.dumps(make_result(provenance={"job": "id-ties", "schema": 0}))[:-1]]
)
def test_damaged_results_are_not_done(tmp_path: Path, said, content: str):
    sweep = begin(tmp_path / "sweep")
    (sweep / "0-ties" / RESULTS).write_text(content)
    assert resumed(sweep) == (sweep, ["0-ties", "1-twin"])
    assert str(sweep / "0-ties" / RESULTS) in said.text
    assert (sweep / ATTEMPTS / "0-ties.1" / RESULTS).read_text() == content


def test_results_of_another_job_are_not_taken(tmp_path: Path):
    sweep = begin(tmp_path / "sweep")
    (sweep / "0-ties" / RESULTS).unlink()
    finish(sweep, JOBS[0], provenance={"job": "id-twin"})
    assert resumed(sweep) == (sweep, ["0-ties", "1-twin"])


def test_a_job_that_still_runs_is_left_alone(tmp_path: Path):
    sweep = begin(tmp_path / "sweep")
    with FileLock(sweep / LOCKS / "1-twin.lock"), opened(sweep, JOBS, resume=True, search=False) as again:
        assert [job.name for job in again.pending] == ["1-twin"]
        assert (sweep / "1-twin" / "run.log").exists()
        assert not (sweep / ATTEMPTS).exists()
        again.note_missing()
    assert "still runs in another process" in json.loads((sweep / "1-twin" / FAILURE).read_text())["message"]


def test_a_job_that_ended_without_a_word_is_a_failure(tmp_path: Path):
    with opened(tmp_path / "sweep", JOBS, resume=False, search=False) as sweep:
        (sweep.folder / "0-ties").mkdir()
        write_failure(sweep.folder / "0-ties", label="ties", kind="user", message="its own", log="log")
        sweep.note_missing()
    found = {job.name: json.loads((sweep.folder / job.name / FAILURE).read_text()) for job in JOBS}
    assert found["0-ties"]["message"] == "its own"
    assert found["1-twin"]["kind"] == "crash"
    assert found["1-twin"]["label"] == "1-twin"
    assert "its process was killed" in found["1-twin"]["message"]
    assert found["1-twin"]["log"] == str(sweep.folder / "1-twin" / "run.log")


def test_a_job_that_is_done_is_no_failure(tmp_path: Path):
    with opened(tmp_path / "sweep", JOBS, resume=False, search=False) as sweep:
        for job in JOBS:
            finish(sweep.folder, job)
        sweep.note_missing()
    assert not list(sweep.folder.rglob(FAILURE))


def test_a_sweep_is_gone_on_with_only_if_asked(tmp_path: Path):
    sweep = begin(tmp_path / "sweep")
    with (
        pytest.raises(UserError, match="has a sweep already") as error,
        opened(sweep, JOBS, resume=False, search=False),
    ):
        pass
    assert "sweep.resume=true" in error.value.hint
    assert (sweep / "1-twin" / "run.log").exists()


@pytest.mark.parametrize(
    ("jobs", "says"),
    [(OTHERS, "the same jobs, but of other settings, data or code"), (RENAMED, "a sweep of other jobs")],
)
def test_a_folder_of_another_sweep_is_refused(tmp_path: Path, jobs: list[Job], says: str):
    sweep = begin(tmp_path / "sweep")
    with pytest.raises(UserError, match=says):
        resumed(sweep, jobs)
    assert (sweep / "1-twin" / "run.log").exists()


def test_results_of_no_sweep_are_refused(tmp_path: Path):
    finish(tmp_path / "alone", JOBS[0])
    with pytest.raises(UserError, match=r"no sweep\.json"):
        resumed(tmp_path / "alone")
    assert not (tmp_path / "alone" / MANIFEST).exists()


def test_the_latest_folder_of_the_same_sweep_is_found(tmp_path: Path):
    begin(tmp_path / "2026-01-01")
    begin(tmp_path / "2026-01-02")
    begin(tmp_path / "2026-01-03", OTHERS)
    begin(tmp_path / "2026-01-04", RENAMED)
    for name, content in (("2026-01-05", "{"), ("2026-01-06", "{}"), ("2026-01-07", '{"schema_version": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_text(content)
    new = tmp_path / "2026-01-08"
    assert unfinished(new, JOBS) == tmp_path / "2026-01-02"
    assert resumed(new, search=True) == (tmp_path / "2026-01-02", ["1-twin"])
    assert not new.exists()
    assert resumed(new) == (new, ["0-ties", "1-twin"])  # as the folder was asked for


def test_a_new_sweep_can_be_found_as_soon_as_another_may_look_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of two that start at the same time, the second looks once the first has let go of the lock of looking."""
    looked_for = []

    @contextmanager
    def spied(path: Path, waiting: str):
        if path.name != "sweep.lock":
            yield
            looked_for.append(unfinished(tmp_path / "other", JOBS))
        else:
            with alone(path, waiting):
                yield

    monkeypatch.setattr(sweep_module, "alone", spied)
    resumed(tmp_path / "new", search=True)
    assert looked_for == [tmp_path / "new"]


def test_a_manifest_of_another_version_is_not_read(tmp_path: Path):
    sweep = begin(tmp_path / "old")
    manifest = json.loads((sweep / MANIFEST).read_text())
    (sweep / MANIFEST).write_text(json.dumps(manifest | {"schema_version": 0}))
    assert unfinished(tmp_path / "new", JOBS) is None


def test_a_sweep_that_is_done_is_not_unfinished(tmp_path: Path):
    sweep = begin(tmp_path / "old")
    assert unfinished(tmp_path / "new", JOBS) == sweep
    finish(sweep, JOBS[1])
    assert unfinished(tmp_path / "new", JOBS) is None


def test_another_process_waits_and_finds_the_job_done(tmp_path: Path, said):
    sweep = begin(tmp_path / "sweep")
    place, answers = sweep / "1-twin", []

    def second() -> None:
        with turn(place) as to_do:
            answers.append(to_do)

    thread = threading.Thread(target=second)
    with turn(place) as to_do:
        thread.start()
        while "1-twin runs in another process: waiting for it" not in said.messages:
            assert thread.is_alive()
        answers.append(to_do)
        finish(sweep, JOBS[1])
    thread.join(30)
    assert answers == [True, False]


def test_another_process_waits_for_the_sweep(tmp_path: Path, said):
    sweep, pending = begin(tmp_path / "sweep"), []
    thread = threading.Thread(target=lambda: pending.append(resumed(sweep)[1]))
    with opened(sweep, JOBS, resume=True, search=False):
        thread.start()
        while f"another process works on the sweep in {sweep}: waiting for it" not in said.messages:
            assert thread.is_alive()
        finish(sweep, JOBS[1])
    thread.join(30)
    assert pending == [[]]


def test_a_job_of_no_sweep_has_its_folder_to_itself(tmp_path: Path):
    finish(tmp_path, JOBS[0])
    assert not is_of_sweep(tmp_path / "0-ties")
    with turn(tmp_path / "0-ties") as to_do:
        assert to_do  # whoever writes results over others is told so there
    assert not (tmp_path / LOCKS).exists()


def test_a_pattern_of_ones_own_may_nest_folders(tmp_path: Path):
    sweep = begin(tmp_path / "sweep")
    assert is_of_sweep(sweep / "by_seed" / "0-ties")


def identity(*overrides: str, key: str = "key") -> str:
    (run,) = plan(["tasks.names=[cola]", *overrides], multirun=False).jobs
    return job_identity(run, key)


@pytest.mark.parametrize(
    "where", ["paths.outputs=x", "paths.cache=x", "tracker=none", "cache=off", "sweep.resume=true"]
)
def test_where_things_go_does_not_change_what_a_job_is(where: str):
    assert identity(where) == identity()


@pytest.mark.parametrize("what", ["seed=1", "merge_method=ties", "sparsifier.rank=3", "evaluation.heads=routed"])
def test_what_determines_results_does(what: str):
    assert identity(what) != identity()
    assert identity(key="other") != identity()
