"""Compression by run.py on the tiny tasks: one decomposition for all ranks, and files as small as they say."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
import torch
from commands import results, run, snapshot, succeed
from oracles import svd as oracle
from oracles.dynamic import multiplied_out
from safetensors.torch import load_file
from sweeps import Finished

from twin_merging.compose import plan
from twin_merging.parts import Parts
from twin_merging.pipeline.cache import Cache
from twin_merging.pipeline.exclusive import basis, exclusive
from twin_merging.pipeline.stages import Stages
from twin_merging.sparsifiers.sparse import Sparse, dense, stored_bytes
from twin_merging.sparsifiers.svd import Factors

NAME = "encoder.layer.1.intermediate.dense.weight"


def cut(arguments: list[str]) -> list[str]:
    return [argument for argument in arguments if not argument.startswith("sparsifier.")]


def only(folder: Path) -> dict:
    """The result of the one job below ``folder``."""
    (result,) = results(folder).values()
    return result


def stage(result: dict, name: str, cache: Path) -> Path:
    """The folder of a stage's artefact of a job."""
    (key,) = {row["key"] for row in result["stages"] if row["name"] == name}
    return cache / name / key


def deltas_of(result: dict, cache: Path, name: str) -> torch.Tensor:
    """θ_t − θ_s of a parameter, (T, *shape), from the checkpoints."""
    keys = [row["key"] for row in result["stages"] if row["name"] == "expert"]
    (shared,) = {row["key"] for row in result["stages"] if row["name"] == "merge"}
    whole = load_file(cache / "merge" / shared / "encoder.safetensors")[name]
    return (
        torch.stack([load_file(cache / "expert" / key / "model.safetensors")[f"bert.{name}"] for key in keys]) - whole
    )


def test_a_sweep_of_ranks_decomposes_once_and_gives_what_each_rank_alone_would(reuse, finished: Finished, tmp_path):
    ranks, cache = [1, 3, 16], finished.cache
    sweep = f"sparsifier.rank={','.join(map(str, ranks))}"
    succeed("-m", "merge_method=twin", sweep, "hydra.sweep.dir=sweep", *cut(reuse), folder=tmp_path)
    jobs = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/results.json")]
    assert len({stage(job, "basis", cache) for job in jobs}) == 1
    by_rank = {job["provenance"]["config"]["sparsifier"]["rank"]: job for job in jobs}
    assert sorted(by_rank) == ranks
    deltas = deltas_of(by_rank[3], cache, NAME)
    for rank, job in by_rank.items():
        stored = load_file(stage(job, "exclusive", cache) / "exclusive.safetensors")
        found = multiplied_out(Factors(*(stored[f"{NAME}.{field}"] for field in Factors._fields)))
        for approximation, delta in zip(found, deltas, strict=True):
            best = oracle.best_approximation(delta.numpy(), rank)
            np.testing.assert_allclose(approximation.numpy(), best, atol=1e-5 * float(delta.norm()))


@pytest.mark.parametrize("stage", [basis, exclusive])
def test_what_was_done_before_a_cut_is_not_done_again(stage, reuse, finished: Finished, tmp_path, monkeypatch):
    (run,) = plan(["merge_method=twin", *reuse], multirun=False).jobs
    stages, add, done, lock = Stages(run, Cache(finished.cache)), Parts.add, [], Lock()

    def some(parts, name, tensors):
        with lock:
            if len(done) == 4:
                raise KeyboardInterrupt
            done.append(name)
        add(parts, name, tensors)

    folders = [tmp_path / name for name in ("whole", "cut", "again")]
    for folder in folders:
        folder.mkdir()
    whole, cut_off, again = folders
    stage(stages, whole, tmp_path / "other scratch")
    monkeypatch.setattr(Parts, "add", some)
    with pytest.raises(KeyboardInterrupt):
        stage(stages, cut_off, tmp_path / "scratch")
    first = list(done)
    monkeypatch.setattr(Parts, "add", lambda *given: (done.append(given[1]), add(*given)))
    stage(stages, again, tmp_path / "scratch")
    assert len(first) == 4
    assert len(done) == len(set(done)) > 4
    assert not list(cut_off.iterdir())
    assert snapshot(again) == snapshot(whole)


@pytest.mark.parametrize(("sparsifier", "budget"), [("svd", 70_000), ("magnitude", 40_000)])
def test_a_budget_is_bytes_on_disk(sparsifier, budget, reuse, finished: Finished, tmp_path):
    succeed(
        "merge_method=twin", f"sparsifier={sparsifier}", f"sparsifier.budget={budget}", *cut(reuse), folder=tmp_path
    )
    result = only(tmp_path)
    size = (stage(result, "exclusive", finished.cache) / "exclusive.safetensors").stat().st_size
    assert 0.9 * budget < size <= budget


def test_bytes_stored_are_those_on_disk(reuse, finished: Finished, tmp_path):
    succeed("merge_method=twin", "sparsifier=magnitude", "sparsifier.fraction=0.05", *cut(reuse), folder=tmp_path)
    result = only(tmp_path)
    size = (stage(result, "exclusive", finished.cache) / "exclusive.safetensors").stat().st_size
    without = results(finished.folder)["pretrained", "oracle"]["bytes_stored"]
    router = (stage(result, "router", finished.cache) / "router.safetensors").stat().st_size
    assert result["bytes_stored"] == without + size + router


@pytest.mark.parametrize(
    "settings", [["magnitude", "fraction=0.05"], ["magnitude", "energy=0.5", "threshold=per_tensor"], ["bernoulli", "drop_rate=0.8"]]
)  # fmt: skip
def test_sparse_files_have_the_size_of_the_formula(settings, reuse, finished: Finished, tmp_path):
    name, *options = settings
    chosen = [f"sparsifier={name}", *(f"sparsifier.{option}" for option in options)]
    succeed("merge_method=twin", *chosen, *cut(reuse), folder=tmp_path)
    result = only(tmp_path)
    path = stage(result, "exclusive", finished.cache) / "exclusive.safetensors"
    stored = load_file(path)
    owners = {key.removesuffix(".positions") for key in stored if key.endswith(".positions")}
    whole = [key for key in stored if key.rpartition(".")[0] not in owners]
    total = sum(stored[key].nbytes for key in whole)
    for owner in owners:
        sparse = Sparse(*(stored[f"{owner}.{field}"] for field in Sparse._fields))
        total += stored_bytes(int(sparse.shape.prod()), sparse.counts.tolist(), len(sparse.shape))
    header = int.from_bytes(path.read_bytes()[:8], "little") + 8
    assert path.stat().st_size == pytest.approx(total + header, rel=0.01)
    assert all(stored[key].dim() == 2 for key in whole)  # (T, n): vectors
    assert torch.count_nonzero(dense(Sparse(*(stored[f"{NAME}.{field}"] for field in Sparse._fields)))) > 0


def test_a_budget_too_small_is_refused_before_any_work(reuse, tmp_path):
    outcome = run("merge_method=twin", "sparsifier.budget=100", *cut(reuse), folder=tmp_path)
    assert outcome.code == 2
    assert "sparsifier.budget" in outcome.err
    assert "100 bytes" in outcome.err
    smallest = int(outcome.err.split("at least ")[1].split()[0])
    succeed("merge_method=twin", f"sparsifier.budget={smallest}", *cut(reuse), folder=tmp_path)
