"""A merge method of one's own: a module in the start directory, or an installed package."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import finish, numbers, refused, results, run, start, succeed
from sweeps import Finished

METHOD = '''
from dataclasses import dataclass

from twin_merging.config import merge_methods, option


@dataclass
class Halfway:
    """θ₀ + share · mean of τ_t"""

    name: str = "halfway"
    share: float = option(1.0, "how far", low=0, high=1)


@merge_methods.register("halfway", options=Halfway)
def halfway(base, deltas, options):
    return base + options.share * deltas.mean(0)
'''


def raw(folder: Path, method: str = "halfway") -> dict[str, float]:
    return {name: task["raw"] for name, task in results(folder)[method, "oracle"]["tasks"].items()}


def test_a_module_in_the_start_directory(reuse: list[str], finished: Finished, tmp_path: Path):
    (tmp_path / "my_method.py").write_text(METHOD)
    arguments = ["plugins=[my_method]", "merge_method=halfway", *reuse]
    succeed(*arguments, "hydra.run.dir=first", folder=tmp_path)
    assert raw(tmp_path / "first") == pytest.approx(raw(finished.folder, "weight_averaging"), abs=1e-3)

    again = succeed(*arguments, "hydra.run.dir=again", folder=tmp_path)
    assert not again.lines("computed in")

    (tmp_path / "my_method.py").write_text(METHOD.replace("base + options.share * deltas.mean(0)", "base"))
    edited = succeed(*arguments, "hydra.run.dir=edited", folder=tmp_path)
    assert edited.lines("  merge ", "halfway", "computed in")
    assert not edited.lines("  expert ", "computed in")
    assert raw(tmp_path / "edited") == raw(finished.folder, "pretrained")


def test_its_options_are_checked(reuse: list[str], tmp_path: Path):
    (tmp_path / "my_method.py").write_text(METHOD)
    arguments = ["plugins=[my_method]", "merge_method=halfway", *reuse]
    refused(*arguments, "merge_method.share=2", folder=tmp_path, says=["merge_method.share", "at most 1 (how far)"])
    refused(*arguments, "merge_method.shar=1", folder=tmp_path, says=["merge_method.shar", "nearest:  share"])


def test_it_serves_as_a_shared_expert(reuse: list[str], tmp_path: Path):
    (tmp_path / "my_method.py").write_text(METHOD)
    arguments = ["plugins=[my_method]", "merge_method=twin", "merge_method@merge_method.shared=halfway", *reuse]
    succeed(*arguments, "hydra.run.dir=run", folder=tmp_path)
    assert results(tmp_path / "run")["twin", "oracle"]["label"].startswith("twin (halfway + svd rank 4")


def test_an_installed_package(reuse: list[str], finished: Finished, tmp_path: Path):
    site, here = tmp_path / "site", tmp_path / "here"
    about = site / "halfway_merging-1.0.dist-info"
    about.mkdir(parents=True)
    here.mkdir()
    (site / "halfway_merging.py").write_text(METHOD)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: halfway-merging\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[twin_merging.components]\nhalfway = halfway_merging\n")
    env = {"PYTHONPATH": str(site)}
    outcome = finish(start("merge_method=halfway", *reuse, "hydra.run.dir=run", folder=here, env=env))
    assert outcome.code == 0, outcome.text
    assert raw(here / "run") == pytest.approx(raw(finished.folder, "weight_averaging"), abs=1e-3)


def test_one_that_raises_or_gives_nan_fails_alone(reuse: list[str], finished: Finished, tmp_path: Path):
    broken = METHOD.replace("base + options.share * deltas.mean(0)", "1 / 0")
    (tmp_path / "my_method.py").write_text(broken + METHOD_OF_NAN)
    arguments = ["-m", "plugins=[my_method]", "merge_method=halfway,lost,pretrained", *reuse, "hydra.sweep.dir=sweep"]
    outcome = run(*arguments, folder=tmp_path)
    assert outcome.code == 1, outcome.text
    assert list(results(tmp_path / "sweep")) == [("pretrained", "oracle")]
    assert numbers(results(tmp_path / "sweep")["pretrained", "oracle"]) == numbers(
        results(finished.folder)["pretrained", "oracle"]
    )
    assert outcome.lines("failed: ", "ZeroDivisionError")
    assert outcome.lines("failed: ", "NaN")
    logs = [Path(line.split("log:")[1].strip()) for line in outcome.lines("log: ") if "each job" not in line]
    assert len(logs) == 2
    assert "ZeroDivisionError" in (tmp_path / logs[0]).read_text()
    assert "Traceback" not in outcome.text


METHOD_OF_NAN = '''

@dataclass
class Lost:
    """NaN everywhere"""

    name: str = "lost"


@merge_methods.register("lost", options=Lost)
def lost(base, deltas, options):
    return base * float("nan")
'''
