"""Jobs that a launcher runs in other processes: the same table as without one, and failures are told."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import Outcome, finish, numbers, results, start
from sweeps import Finished

LAUNCHERS = {
    "basic": ("hydra", []),
    "joblib": ("hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", ["hydra.launcher.timeout_min=15"]),
    "ray": ("hydra_plugins.hydra_ray_launcher", ["+hydra.launcher.ray.init.num_cpus=1"]),
}
PLUGIN = """
from dataclasses import dataclass
from twin_merging.config import merge_methods

@dataclass
class Options:
    name: str = "broken"

@merge_methods.register("broken", options=Options)
def broken(base, deltas, options):
    raise RuntimeError("out of order")
"""


def installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def sweep(launcher: str, reuse: list[str], folder: Path) -> Outcome:
    """Two jobs that end well and one that does not, with a plugin and folders that are found from where it starts."""
    module, settings = LAUNCHERS[launcher]
    if not installed(module):
        pytest.skip(f"needs {module.rpartition('.')[2]}, which is not installed")
    (folder / "my_broken.py").write_text(PLUGIN)
    (folder / "cache").symlink_to(next(value for value in reuse if value.startswith("paths.cache=")).split("=")[1])
    return finish(start(
        "-m", *(value for value in reuse if not value.startswith("paths.cache=")), "paths.cache=cache", "plugins=[my_broken]",
        "merge_method=weight_averaging,twin,broken", f"hydra/launcher={launcher}", *settings, folder=folder,
    ))  # fmt: skip


def table(folder: Path) -> list[dict[str, str]]:
    (path,) = folder.glob("outputs/multiruns/custom/*/table.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_gives_the_same_table(launcher: str, reuse: list[str], finished: Finished, tmp_path: Path):
    outcome = sweep(launcher, reuse, tmp_path)
    assert outcome.code == 1, outcome.text
    assert outcome.lines("failed: 2-broken: RuntimeError: out of order"), outcome.text
    (log,) = tmp_path.glob("outputs/multiruns/custom/*/2-broken/run.log")
    assert "out of order" in log.read_text()
    found, before = results(tmp_path), results(finished.folder)
    assert {key: numbers(result) for key, result in found.items()} == {
        key: numbers(before[key]) for key in (("weight_averaging", "oracle"), ("twin", "oracle"))
    }
    with (finished.folder / "table.csv").open() as file:
        rows = {(row["method"], row["heads"]): row for row in csv.DictReader(file)}
    assert len(table(tmp_path)) == 2
    for row in table(tmp_path):
        assert row == {**rows[row["method"], row["heads"]], "seconds": row["seconds"]}


DEADLY = PLUGIN.replace(
    'raise RuntimeError("out of order")',
    """
    import os, signal, time
    from pathlib import Path
    while not list(Path("outputs/multiruns").glob("*/*/0-*/results.json")):
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)
""",
)


def test_a_worker_that_is_killed_is_told_and_what_was_done_is_kept(reuse: list[str], tmp_path: Path):
    (tmp_path / "my_broken.py").write_text(DEADLY)
    outcome = finish(start(
        "-m", *reuse, "plugins=[my_broken]", "merge_method=pretrained,broken", "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2", folder=tmp_path,
    ))  # fmt: skip
    assert outcome.code == 1, outcome.text
    assert outcome.lines("the launcher stopped: "), outcome.text
    assert outcome.lines("failed: 1-broken: ended without a result: its process was killed"), outcome.text
    assert "Traceback" not in outcome.text
    assert [row["method"] for row in table(tmp_path)] == ["pretrained"]


@pytest.mark.parametrize("launcher", ["submitit_local", "ray"])
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(launcher: str, reuse: list[str], tmp_path: Path):
    if installed(LAUNCHERS[launcher][0]):
        pytest.skip("needs an environment without this launcher")
    outcome = finish(start("-m", *reuse, "merge_method=pretrained,twin", f"hydra/launcher={launcher}", folder=tmp_path))
    assert outcome.code == 2
    assert outcome.lines("hydra/launcher", "unknown option"), outcome.text
    assert outcome.lines("hint", "pip install"), outcome.text
