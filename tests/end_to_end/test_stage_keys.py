"""What a result is addressed by: the code of every component that a third party may bring, and every option but speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from twin_merging.compose import plan
from twin_merging.pipeline.cache import Cache
from twin_merging.pipeline.stages import Stages
from twin_merging.registry import Component

COMPONENTS = ["sequence_classifier", "local_text", "full", "task_arithmetic", "svd", "mlp", "exact", "scores"]


def key(arguments: list[str], folder: Path) -> str:
    (run,) = plan(["merge_method=twin", *arguments], multirun=False).jobs
    return Stages(run, Cache(folder / "cache")).result.key


@pytest.mark.parametrize("edited", COMPONENTS)
def test_editing_a_component_makes_its_results_new(
    edited: str, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = key(small, tmp_path)
    assert key(small, tmp_path) == before
    monkeypatch.setattr(Component, "code_hash", lambda self: "edited" if self.name == edited else None)
    assert key(small, tmp_path) != before


@pytest.mark.parametrize("setting", ["evaluation.heads=routed", "router.layer=0", "seed=1", "tasks.limit=20"])
def test_a_setting_makes_results_new(setting: str, small: list[str], tmp_path: Path):
    assert key([*small, setting], tmp_path) != key(small, tmp_path)


@pytest.mark.parametrize("setting", ["evaluation.batch_size=7", "inference.batch_size=7", "tracker=none"])
def test_what_does_not_change_the_outcome_keeps_the_result(setting: str, small: list[str], tmp_path: Path):
    assert key([*small, setting], tmp_path) == key(small, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "stage", "drawn"),
    [
        (["merge_method=dare_task_arithmetic"], "shared", True),
        (["merge_method=dare_ties"], "shared", True),
        (["merge_method=ties", "merge_method.grid=[0.5,1]"], "shared", False),
        (["merge_method=breadcrumbs"], "shared", False),
        (["merge_method=tsv_merge"], "shared", False),
        (["merge_method=regmean"], "shared", False),
        (["merge_method=fisher", "merge_method.labels=sampled"], "shared", True),
        (["merge_method=adamerging"], "shared", True),
        (["merge_method=twin", "sparsifier=svd"], "exclusive", False),
        (["merge_method=twin", "merge_method@merge_method.shared=dare_ties"], "exclusive", True),
        (["merge_method=twin", "sparsifier=magnitude", "sparsifier.fraction=0.5"], "exclusive", False),
        (["merge_method=twin", "sparsifier=bernoulli"], "exclusive", True),
    ],
)
def test_seeds_share_what_they_do_not_change(overrides, stage, drawn, small: list[str], tmp_path: Path):
    """Of experts whose own seed stays; a grid on validation rows would else be walked for each seed of a sweep."""

    given = [each for each in small if not each.startswith("sparsifier.")]

    def merge_key(seed: int) -> str:
        (run,) = plan([*given, "experts.seed=0", f"seed={seed}", *overrides], multirun=False).jobs
        return getattr(Stages(run, Cache(tmp_path / "cache")), stage).key

    assert (merge_key(0) != merge_key(1)) == drawn
    assert merge_key(0) == merge_key(0)
