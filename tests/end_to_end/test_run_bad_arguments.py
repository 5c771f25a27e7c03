"""A command line that cannot be run: exit code 2, what is wrong and what would be right, and nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import refused, results, snapshot, succeed
from sweeps import Finished

BAD = {
    "unknown task": (["tasks.names=[colour,sise]"], ["tasks.names", "sise", "nearest:  size"]),
    "no task": (["tasks.names=[]"], ["tasks.names", "at least one task"]),
    "task named twice": (["tasks.names=[colour,colour]"], ["tasks.names", "named twice", "colour"]),
    "rank 0": (["sparsifier.rank=0"], ["sparsifier.rank", "found:    0", "at least 1"]),
    "rank beyond every matrix": (["sparsifier.rank=1000000000"], ["sparsifier.rank", "1000000000", "1 to 32"]),
    "rank that is no number": (["sparsifier.rank=high"], ["sparsifier.rank", "high"]),
    "two ranks": (["sparsifier.fraction=0.5"], ["sparsifier", "rank and fraction", "at most one"]),
    "unknown key": (["sparsifier.rnak=4"], ["sparsifier.rnak", "nearest:  rank"]),
    "added unknown key": (["+sparsifier.rnak=4"], ["sparsifier.rnak", "nearest:  rank"]),
    "unknown key at the top": (["sed=4"], ["sed", "nearest:  seed"]),
    "unknown group": (["merge_methods=twin"], ["merge_methods", "nearest:  merge_method"]),
    "unknown option": (["merge_method=twni"], ["merge_method", "twni", "nearest:  twin"]),
    "unknown option of the shared expert": (
        ["merge_method@merge_method.shared=task_arithmetics"], ["task_arithmetics", "nearest:  task_arithmetic"],
    ),
    "unknown choice": (["evaluation.heads=oracel"], ["evaluation.heads", "oracel", "nearest:  oracle"]),
    "unknown experiment": (["+exp=quickstrat"], ["exp", "quickstrat", "nearest:  quickstart"]),
    "experiment without a plus": (["exp=quickstart"], ["exp", "+exp=quickstart"]),
    "learning rate 0": (["finetune.lr=0"], ["finetune.lr", "more than 0"]),
    "epochs below 1": (["finetune.epochs=-1"], ["finetune.epochs", "at least 1"]),
    "negative seed": (["seed=-1"], ["seed", "at least 0"]),
    "no number": (["finetune.lr=nan"], ["finetune.lr", "nan"]),
    "a broken override": (["tasks.names=[colour"], ["tasks.names=[colour", "key=value"]),
    "a word": (["twin"], ["twin", "key=value"]),
    "an unknown flag": (["--multi-run"], ["--multi-run"]),
    "several values without -m": (["seed=0,1"], ["seed", "-m"]),
    "routed heads by an oracle": (["router=oracle", "evaluation.heads=routed"], ["evaluation.heads", "oracle"]),
    "a key of another option": (["router=oracle", "router.epochs=3"], ["router.epochs", "unknown key"]),
    "lower blocks of a router that reads none": (
        ["router=tfidf", "inference.lower=shared"], ["inference.lower", "token ids", "mixed"],
    ),
    "lower blocks where no block is above": (
        ["router.layer=2", "inference.lower=shared"], ["inference.lower", "router.layer=2", "0 to 1"],
    ),
    "no regularization to choose from": (["router=tfidf", "router.grid=[]"], ["router.grid", "at least one"]),
    "the last token of an encoder": (["router.token=last"], ["router.token", "language models"]),
    "a layer of a router that reads none": (["router=tfidf", "router.layer=1"], ["router.layer", "unknown key"]),
    "a shared expert that is many": (["merge_method@merge_method.shared=finetuned"], ["merge_method.shared", "finetuned"]),
    "an unknown precision": (["precision=fp64"], ["precision", "fp64", "nearest:  fp32"]),
    "no such device": (["device=gpu"], ["device", "gpu", "cuda"]),
    "a device that is not here": (["device=cuda:77"], ["device", "cuda:77", "cpu"]),
    "a plugin that is not there": (["plugins=[no_such_module]"], ["plugins", "no_such_module"]),
    "a backbone that is not there": (["backbone.pretrained=./no_such_model"], ["backbone.pretrained", "no_such_model"]),
    "an asset that is not known": (["backbone.pretrained=asset:minilmm"], ["minilmm", "nearest:  minilm"]),
    "no folder for local tasks": (["paths.data=null"], ["paths.data"]),
    "one source for three experts": (["experts.source=somewhere"], ["experts.source", "{task}"]),
    "patterns that leave nothing to merge": (["parameters.exclude=[.*]"], ["parameters"]),
    "a pattern that is none": (["parameters.include=['(']"], ["parameters.include", "("]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_argument(name: str, reuse: list[str], finished: Finished, tmp_path: Path):
    arguments, says = BAD[name]
    before = snapshot(finished.cache)
    outcome = refused("merge_method=twin", *_without(reuse, arguments), *arguments, folder=tmp_path, says=says)
    assert outcome.err.startswith("error: ")  # found before work started, not by a job that failed
    assert snapshot(finished.cache) == before
    assert not list(tmp_path.rglob("results.json"))


def test_a_bad_value_in_a_sweep_is_found_before_its_first_job(reuse: list[str], tmp_path: Path):
    refused("-m", *reuse, "sparsifier.rank=4,0", folder=tmp_path, says=["sparsifier.rank", "at least 1"])
    assert not list(tmp_path.rglob("run.log"))


def test_outputs_below_a_file_are_refused(reuse: list[str], tmp_path: Path):
    (tmp_path / "file").touch()
    refused(
        "merge_method=pretrained",
        *reuse,
        "paths.outputs=file/outputs",
        folder=tmp_path,
        says=["paths.outputs", "file/outputs"],
    )


def test_outputs_in_a_folder_that_is_read_only_are_refused(reuse: list[str], tmp_path: Path, read_only_folder: Path):
    refused(
        "merge_method=pretrained", *reuse, f"paths.outputs={read_only_folder}/outputs", folder=tmp_path,
        says=["paths.outputs", str(read_only_folder)],
    )  # fmt: skip
    refused("merge_method=pretrained", *reuse, f"paths.cache={read_only_folder}", folder=tmp_path, says=["paths.cache"])


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_results_are_never_overwritten(key: str, reuse: list[str], tmp_path: Path):
    several = ["-m"] if "sweep" in key else []
    succeed(*several, "merge_method=pretrained", *reuse, f"{key}=kept", folder=tmp_path)
    before = snapshot(tmp_path / "kept")
    refused(*several, "merge_method=finetuned", *reuse, f"{key}=kept", folder=tmp_path, says=[key, "never overwritten"])
    assert snapshot(tmp_path / "kept") == before
    assert list(results(tmp_path / "kept")) == [("pretrained", "oracle")]


def _without(arguments: list[str], replaced: list[str]) -> list[str]:
    """``arguments`` less the keys that ``replaced`` sets, and less the keys of a group whose option it replaces."""
    keys = {argument.split("=")[0] for argument in replaced}
    return [argument for argument in arguments if not keys & {argument.split("=")[0], argument.split(".")[0]}]
