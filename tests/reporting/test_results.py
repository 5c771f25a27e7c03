import json
import math
import os
import subprocess
import sys

import pytest
from synthetic import make_result

from twin_merging.errors import UserError
from twin_merging.reporting.results import collect, collect_failures, read, write


def test_what_is_written_is_read(tmp_path):
    result = make_result()
    assert write(tmp_path / "new" / "job", result) == tmp_path / "new" / "job" / "results.json"
    assert read(tmp_path / "new" / "job") == result


def test_results_are_never_overwritten(tmp_path):
    write(tmp_path, make_result(seed=1))
    with pytest.raises(UserError, match="never overwritten"):
        write(tmp_path, make_result(seed=2))
    assert read(tmp_path)["seed"] == 1


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_by_its_place(tmp_path, number):
    result = make_result()
    result["tasks"]["bbc"]["confidence_interval"][1] = number
    with pytest.raises(ValueError, match=r"tasks\.bbc\.confidence_interval\[1\]"):
        write(tmp_path, result)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_key_is_refused_by_its_name(tmp_path):
    result = make_result()
    del result["tasks"]["bbc"]["rows"]
    with pytest.raises(ValueError, match=r"tasks\.bbc without rows"):
        write(tmp_path, result)
    del result["choices"]
    with pytest.raises(ValueError, match="without choices"):
        write(tmp_path, result)


def test_an_error_while_writing_leaves_no_file(tmp_path, monkeypatch):
    def full_disk(handle):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path, make_result())
    assert list(tmp_path.iterdir()) == []


def test_a_process_killed_while_writing_leaves_no_results(tmp_path):
    code = (
        "import os, signal, sys\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from synthetic import make_result\n"
        "from twin_merging.reporting import results\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"results.write({str(tmp_path)!r}, make_result())\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -9
    assert collect(tmp_path) == []
    write(tmp_path, make_result())
    assert len(collect(tmp_path)) == 1


@pytest.mark.parametrize(
    "text", ["", '{"schema_version": 1', "[]", '{"schema_version": 1}', '{"schema_version": 7}', "\x00"]
)
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "3" / "results.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(UserError) as error:
        collect(tmp_path)
    assert error.value.key == str(path)


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file") as error:
        read(tmp_path)
    assert error.value.key == str(tmp_path / "results.json")


def test_jobs_are_in_their_natural_order(tmp_path):
    for job in (10, 2, 0, 1, 11):
        write(tmp_path / f"{job}_twin,seed={job}", make_result(seed=job))
    assert [result["seed"] for result in collect(tmp_path)] == [0, 1, 2, 10, 11]


def test_a_single_run_is_its_own_folder(tmp_path):
    write(tmp_path, make_result())
    assert collect(tmp_path) == [make_result()]


def test_failures_are_collected_in_order(tmp_path):
    for job in (10, 9):
        (tmp_path / str(job)).mkdir()
        failure = {"label": f"job {job}", "kind": "crash", "message": "broken", "log": "job.log"}
        (tmp_path / str(job) / "failure.json").write_text(json.dumps(failure))
    assert [failure["label"] for failure in collect_failures(tmp_path)] == ["job 9", "job 10"]
