"""The scripts' command lines are ones that run.py takes."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("arguments", [[], ["+exp=quickstart", "merge_method=twin", "seed=0,1"]])
def test_the_slurm_sweep_composes(arguments: list[str], tmp_path: Path):
    if find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        pytest.skip("needs hydra-submitit-launcher, which is not installed")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@" --cfg all\n')  # shows what would run
    python.chmod(0o755)
    shown = subprocess.run(
        [ROOT / "scripts/slurm_sweep.sh", *arguments], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHON": str(python), "PARTITION": "fast", "CACHE": "/scratch/cache"},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    for line in ("partition: fast", "resume: true", "cache: /scratch/cache", "SlurmLauncher"):
        assert line in shown.stdout, line
