"""Fine-tuning in several processes, through ``run.py``: the same scores, files that do not fit, and kills."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

import pytest
from commands import finish, refused, results, start, succeed, wait_until
from test_run_language import scores

TWO = "{distributed_type: MULTI_CPU, num_processes: 2, use_cpu: true}"


@pytest.fixture
def given(language_job: list[str], tmp_path: Path) -> list[str]:
    """One expert."""
    (tmp_path / "two.yaml").write_text(TWO)
    kept = [argument for argument in language_job if not argument.startswith("tasks.names")]
    return [*kept, "tasks.names=[mmlu]", "merge_method=finetuned", "finetune.micro_batch=4"]


def workers(folder: Path) -> list[int]:
    """Processes that train for a run in this folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if b"twin_merging.experts.processes" in words and str(folder).encode() in words:
            found.append(int(place.name))
    return found


def test_several_processes_train_what_one_does(given: list[str], tmp_path: Path):
    litter = set(Path(tempfile.gettempdir()).glob("torchelastic*"))
    succeed(*given, "hydra.run.dir=one", "paths.cache=alone", folder=tmp_path)
    outcome = succeed(*given, "finetune.accelerate=two.yaml", "hydra.run.dir=several", folder=tmp_path)
    assert outcome.lines("expert", "mmlu", "computed in")
    found = [scores(results(tmp_path / name)["finetuned", "none"], "raw") for name in ("one", "several")]
    assert found[0] == found[1]
    assert found[0]["mmlu"] > 0.8
    assert set(Path(tempfile.gettempdir()).glob("torchelastic*")) == litter


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"), ("{:", "cannot be read"), ("machines: 3", "not a configuration"),
        ("{distributed_type: MULTI_GPU, num_processes: 2}", "cannot be done on CPUs"),
        ("{distributed_type: DEEPSPEED, num_processes: 2}", "cannot be done on CPUs"),
        ("{distributed_type: FSDP, num_processes: 2}", "cannot be done on CPUs"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_told_before_work(given: list[str], tmp_path: Path, content: str | None, says: str):
    if content is not None:
        (tmp_path / "file.yaml").write_text(content)
    outcome = refused(*given, "finetune.accelerate=file.yaml", folder=tmp_path, says=["finetune.accelerate", says])
    assert not outcome.lines("computed in")


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are found as on Linux")
def test_a_run_that_is_killed_leaves_no_process_and_goes_on_from_its_checkpoint(given: list[str], tmp_path: Path):
    arguments = [*given, "finetune.accelerate=two.yaml", "finetune.epochs=60"]
    process = start(*arguments, folder=tmp_path)
    unfinished = tmp_path / "outputs/cache/unfinished"
    assert wait_until(lambda: any(unfinished.glob("expert-*/checkpoint-*/complete")), process), finish(process).text
    assert len(workers(tmp_path)) >= 3  # the launcher and two that learn
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 10
    while workers(tmp_path):
        assert time.monotonic() < end, "they train on"
        time.sleep(0.1)
    finish(process)
    outcome = succeed(*arguments, "hydra.run.dir=again", folder=tmp_path)
    assert "goes on from step" in outcome.text
    assert scores(results(tmp_path / "again")["finetuned", "none"], "raw")["mmlu"] > 0.8
