"""A backbone with BatchNorm, a tiny ResNet, by run.py with every method there is for images."""

from __future__ import annotations

from pathlib import Path

import pytest
from backbones.tiny_batchnorm import save_resnet
from backbones.tiny_images import save_colours
from commands import refused, results, succeed

from twin_merging.config import merge_methods

BRIEF = (
    "finetune.epochs=4", "finetune.lr=1.0e-2", "finetune.head_lr=1.0e-2", "finetune.batch_size=8", "backbone.image_size=null",
    "tasks.rows={train:48,validation:24,test:24}", "tasks.names=[a,b]", "tasks.corrupt=0.05", "precision=fp32", "device=cpu",
    "evaluation.timing=8", "router.epochs=10", "sparsifier=magnitude", "sparsifier.fraction=0.3",
)  # fmt: skip
QUICK = {name: f"{name}_quick" for name in ("adamerging", "surgery", "fisher")}
FINDS_ITS_OWN = {*merge_methods} - {"pretrained", "finetuned", "multitask"}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place = save_colours(tmp_path_factory.mktemp("place"))
    resnet = save_resnet(place / "resnet")
    return ["+exp=vision_small", f"paths.data={place}", f"backbone.pretrained={resnet}", *BRIEF]


def test_every_method_merges_it(job: list[str], tmp_path: Path):
    chosen = [QUICK.get(name, name) for name in merge_methods]
    succeed("-m", *job, f"merge_method={','.join(chosen)}", "hydra.sweep.dir=sweep", folder=tmp_path)
    found = {method: result for (method, _), result in results(tmp_path / "sweep").items()}
    assert set(found) == {*merge_methods}
    for name, result in found.items():
        choices = [each for each in result["choices"] if each["what"].startswith("BatchNorm statistics")]
        assert bool(choices) == (name in FINDS_ITS_OWN), name
        assert all(each["split"] == "unlabelled train inputs" for each in choices), name
    assert all(task["raw"] > 0.9 for task in found["finetuned"]["tasks"].values())
    assert found["twin"]["average_normalized"] > 60


def test_statistics_of_one_row_are_refused(job: list[str], tmp_path: Path):
    refused(
        *job, "merge_method=weight_averaging", "backbone.batchnorm_rows=1", folder=tmp_path, says=["batchnorm_rows"]
    )
