"""timm's encoders through the whole of a job: fine-tuned, merged, routed and reported; and what is refused before that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from backbones.tiny_images import save_colours, save_encoder
from backbones.tiny_timm import save_timm
from commands import refused, results, succeed

BRIEF = (
    "finetune.epochs=6", "finetune.lr=3.0e-3", "finetune.head_lr=1.0e-2", "finetune.batch_size=8", "tasks.rows={train:48,validation:24,test:24}",
    "precision=fp32", "device=cpu", "evaluation.timing=null", "router.epochs=30", "sparsifier.rank=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_colours(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``vit``, ``resnet``, and two experts of the latter whose classifiers name other orders of the classes."""
    folder = tmp_path_factory.mktemp("models")
    save_timm(folder / "vit", "vit")
    save_timm(folder / "resnet", "resnet", num_classes=7)
    for seed, (name, classes) in enumerate({"a": ["blue", "red", "green"], "b": ["green", "blue", "red"]}.items(), 1):
        save_timm(folder / "experts" / name, "resnet", seed, config={"label_names": classes})
    save_encoder(folder / "transformers", "vit")
    return folder


def job(data: Path, encoder: Path, *changed: str) -> list[str]:
    names = ["tasks=vision", "tasks.names=[a,b]", "tasks.corrupt=0.05", "router=mlp"]
    return ["backbone=timm_resnet50", f"backbone.pretrained={encoder}", f"paths.data={data}", *names, *BRIEF, *changed]


def test_a_vision_transformer_is_fine_tuned_merged_and_routed(data: Path, models: Path, tmp_path: Path):
    methods = "finetuned,task_arithmetic,fisher_quick,regmean,adamerging_quick,surgery_quick,multitask,twin"
    outcome = succeed(
        "-m", *job(data, models / "vit"), f"merge_method={methods}", "hydra.sweep.dir=sweep", folder=tmp_path
    )  # fmt: skip
    found = {method: result for (method, _), result in results(tmp_path / "sweep").items()}
    assert len(found) == 8
    assert all(task["raw"] > 0.9 for task in found["finetuned"]["tasks"].values())
    assert found["twin"]["average_normalized"] > 60
    assert not outcome.lines("no routed form")


def test_a_convolutional_encoder_is_fine_tuned_and_answers(data: Path, models: Path, tmp_path: Path):
    succeed("-m", *job(data, models / "resnet", "merge_method=finetuned", "hydra.sweep.dir=run"), folder=tmp_path)
    (result,) = results(tmp_path / "run").values()
    assert all(task["raw"] > 0.9 for task in result["tasks"].values())
    for folder in (tmp_path / "outputs/cache/expert").iterdir():
        config = json.loads((folder / "config.json").read_text())
        assert (config["architecture"], config["model_type"]) == ("test_resnet", "timm")


def test_published_experts_bring_their_heads(data: Path, models: Path, tmp_path: Path):
    source = f"experts.source='{models}/experts/{{task}}'"
    succeed(*job(data, models / "resnet", "merge_method=finetuned", source), folder=tmp_path)
    records = [json.loads(path.read_text()) for path in (tmp_path / "outputs/cache/expert").glob("*/expert.json")]
    # the tasks' own orders are red, green, blue and green, blue, red
    assert {each["task"]: (each["outputs"]["by"], each["outputs"]["order"]) for each in records} == {
        "a": ("name", [1, 2, 0]), "b": ("name", [0, 1, 2]),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("encoder", "changed", "says"),
    [
        ("transformers", "", ["backbone.pretrained", "no model in timm's form"]),
        ("resnet", "backbone=dinov2_small", ["backbone.name", "timm"]),
        ("resnet", "router=mlp_early", ["router.layer", "no list of blocks", "-1"]),
        ("vit", "router.layer=3", ["router.layer", "fewer layers"]),
        ("vit", "sparsifier.rank=33", ["sparsifier.rank", "1 to 32"]),
        ("vit", "backbone.image_size=4", ["backbone.image_size", "at least 8"]),
        ("experts", "", ["backbone.pretrained", "no model in this folder"]),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_refused_at_once(
    encoder: str, changed: str, says: list[str], data: Path, models: Path, tmp_path: Path
):
    given = [
        argument
        for argument in job(data, models / encoder)
        if not changed or not argument.startswith(changed.partition("=")[0] + "=")
    ]
    refused(*given, *([changed] if changed else []), "merge_method=twin", folder=tmp_path, says=says)
    assert not list(tmp_path.rglob("expert.json"))
