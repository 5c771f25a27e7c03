"""What a user sees before anything runs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import yaml
from commands import ROOT, run

from twin_merging.config import REGISTRIES


def seconds(command: list[str], folder: Path) -> float:
    """The best of five, so that another process's load does not count."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        best = min(best, time.perf_counter() - start)
    return best


def test_help_shows_every_group_every_option_and_three_examples(tmp_path: Path):
    outcome = run("--help", folder=tmp_path)
    assert outcome.code == 0
    words = {line.split()[0].lstrip("+") for line in outcome.out.splitlines() if line.strip()}
    assert set(REGISTRIES) <= words
    for option in (ROOT / "configs").glob("*/*.yaml"):
        assert {option.stem, option.parent.name} <= words
    assert (
        sum(line.strip().startswith("python run.py") and "exp=quickstart" in line for line in outcome.out.splitlines())
        >= 3
    )


def test_help_comes_at_once(tmp_path: Path):
    help_seconds = seconds([sys.executable, str(ROOT / "run.py"), "--help"], tmp_path)
    bare_seconds = seconds([sys.executable, "-c", "import hydra"], tmp_path)
    assert help_seconds < max(1.0, 3 * bare_seconds), (help_seconds, bare_seconds)


def test_help_loads_nothing_heavy(tmp_path: Path):
    code = "import sys; sys.argv = ['run.py', '--help']; from twin_merging.cli import main; main(); print(sorted(sys.modules), file=sys.stderr)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(process.stderr.strip("[]\n'").split("', '"))
    assert "twin_merging.config" in loaded
    assert not loaded & {"torch", "transformers", "datasets", "pandas", "pyarrow", "matplotlib", "sklearn", "numpy"}


def test_alone_it_says_what_to_add(tmp_path: Path):
    outcome = run(folder=tmp_path)
    assert outcome.code == 2
    assert "python run.py +exp=quickstart" in outcome.err
    assert "--help" in outcome.err
    assert not list(tmp_path.iterdir())


def test_cfg_job_prints_the_whole_configuration_and_runs_nothing(tmp_path: Path):
    outcome = run("+exp=quickstart", "merge_method=twin", "sparsifier.rank=4", "--cfg", "job", folder=tmp_path)
    assert outcome.code == 0, outcome.text
    config = yaml.safe_load(outcome.out)
    assert set(REGISTRIES) <= config.keys()
    assert config["sparsifier"]["rank"] == 4
    assert config["merge_method"]["shared"]["name"] == "task_arithmetic"
    assert not list(tmp_path.iterdir())
