"""Image tasks from folders of a user's own: ``+exp=vision_small`` on a tiny encoder, with every method there is for images."""

from __future__ import annotations

from pathlib import Path

import pytest
from backbones.tiny_images import save_colours, save_encoder
from commands import refused, results, succeed
from looks import check_looks

from twin_merging.config import merge_methods

BRIEF = (
    "finetune.epochs=8", "finetune.lr=3.0e-3", "finetune.head_lr=1.0e-2", "finetune.batch_size=8", "backbone.image_size=16",
    "tasks.rows={train:48,validation:24,test:24}", "precision=fp32", "device=cpu", "evaluation.timing=8",
)  # fmt: skip
QUICK = {name: f"{name}_quick" for name in ("adamerging", "surgery", "fisher")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_colours(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("models") / "dinov2", "dinov2")


def job(data: Path, encoder: Path) -> list[str]:
    names = ["tasks.names=[a,b]", "tasks.corrupt=0.05"]
    return ["+exp=vision_small", f"paths.data={data}", f"backbone.pretrained={encoder}", *names, *BRIEF]


def test_every_method_runs_on_images(data: Path, encoder: Path, tmp_path: Path):
    chosen = [QUICK.get(name, name) for name in merge_methods]
    outcome = succeed(
        "-m", *job(data, encoder), f"merge_method={','.join(chosen)}", "sparsifier.rank=8", "router.epochs=30", "hydra.sweep.dir=sweep",
        folder=tmp_path,
    )  # fmt: skip
    assert outcome.lines("b", "1 of 96 images cannot be decoded")
    found = {method: result for (method, _), result in results(tmp_path / "sweep").items()}
    assert set(found) == {*merge_methods}
    for name, result in found.items():
        assert set(result["tasks"]) == {"a", "b"}, name
    assert all(task["raw"] > 0.9 for task in found["finetuned"]["tasks"].values())
    assert found["twin"]["average_normalized"] > 60
    jobs = [path.parent for path in (tmp_path / "sweep").rglob("results.json")]
    routed = {job.name: examples for job in jobs if (examples := check_looks(job))}
    assert len(routed) == 2  # twin and emr
    assert all(not any(each["answer"] is None for each in examples) for examples in routed.values())
    assert outcome.lines("answers:", "JOB/figures")
    rows = found["twin"]["provenance"]["data"]["b"]["rows"]
    assert (rows["used"]["train"], rows["corrupt"]["train"]) == (47, 1)


def test_a_twin_that_keeps_all_is_its_experts(data: Path, encoder: Path, tmp_path: Path):
    succeed(
        "-m", *job(data, encoder), "merge_method=twin,finetuned", "sparsifier=none", "router=oracle", "hydra.sweep.dir=sweep",
        folder=tmp_path,
    )  # fmt: skip
    found = results(tmp_path / "sweep")
    twin, experts = found["twin", "oracle"]["tasks"], found["finetuned", "oracle"]["tasks"]
    assert {name: task["raw"] for name, task in twin.items()} == {name: task["raw"] for name, task in experts.items()}


def test_images_that_are_kept_decoded_change_no_score(data: Path, encoder: Path, tmp_path: Path):
    found = []
    for room in ("1GB", "null"):
        given = [
            "finetune.epochs=1",
            f"backbone.pixels={room}",
            f"paths.cache=cache_{room}",
            f"hydra.sweep.dir=run_{room}",
        ]
        succeed(*job(data, encoder), *given, "merge_method=regmean", folder=tmp_path)
        (result,) = results(tmp_path / f"run_{room}").values()
        found.append(result["tasks"])
        assert (tmp_path / f"cache_{room}" / "pixels").exists() == (room == "1GB")
    assert found[0] == found[1]


def test_an_unknown_task_is_found_among_images(data: Path, encoder: Path, tmp_path: Path):
    succeed(*job(data, encoder), "merge_method=twin", "evaluation=task_unknown", "hydra.sweep.dir=run", folder=tmp_path)
    (result,) = results(tmp_path / "run").values()
    assert result["task_unknown"]
    assert len(check_looks(*(path.parent for path in (tmp_path / "run").rglob("results.json")))) >= 10


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ("router=tfidf", "router.name"), ("tasks.names=[a,c]", "tasks.names"),
        ("tasks.corrupt=0.01", "tasks.corrupt"), ("backbone.image_size=4", "backbone.image_size"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_images_is_refused(changed: str, key: str, data: Path, encoder: Path, tmp_path: Path):
    refused(*job(data, encoder), "merge_method=task_arithmetic", changed, folder=tmp_path, says=[key])
    assert not list(tmp_path.rglob("expert.json"))


@pytest.mark.parametrize(
    "groups", [("backbone=dinov2_small", "tasks=offline_text"), ("backbone=minilm", "tasks=vision")]
)
def test_texts_and_images_are_not_mixed(groups: tuple[str, str], tmp_path: Path):
    refused(
        *groups, "tasks.names=[digits]", "merge_method=finetuned", folder=tmp_path, says=["tasks.name", "of images"]
    )
