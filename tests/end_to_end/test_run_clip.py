"""A tiny CLIP through the whole pipeline: zero-shot heads, every kind of method, routing, unseen tasks, random weights."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
from backbones.tiny_clip import MODEL, save_clip
from backbones.tiny_images import COLOURS, colour_task
from commands import refused, results, succeed
from safetensors.torch import load_file, save_file

from twin_merging.compose import plan
from twin_merging.evaluation.scoring import PUBLISHED
from twin_merging.pipeline.cache import Cache
from twin_merging.pipeline.stages import Stages
from twin_merging.reporting.tables import RANDOM_WARNING

METHODS = "pretrained,task_arithmetic,regmean,fisher_quick,adamerging_quick,surgery_quick,multitask,emr,twin,finetuned"
NAMES = ["first", "second", "third"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of a job that takes seconds."""
    data, clip = tmp_path_factory.mktemp("images"), save_clip(tmp_path_factory.mktemp("clip"))
    for seed, name in enumerate(NAMES):
        task = colour_task(name, seed=seed)
        for split, rows in task.splits.items():
            for number, ((key,), label) in enumerate(zip(rows.texts, rows.labels, strict=True)):
                path = data / "vision" / name / split / COLOURS[label] / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(task.images[key])
    return [
        "backbone=clip_vit_b32", f"backbone.pretrained={clip}", "tasks=vision", f"tasks.names=[{','.join(NAMES)}]", f"paths.data={data}",
        "finetune.epochs=3", "finetune.lr=3e-3", "finetune.batch_size=8", "precision=fp32", "device=cpu", "router.epochs=3", "sparsifier.rank=4",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def swept(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    succeed("-m", f"merge_method={METHODS}", "evaluation.heads=oracle", *small, "hydra.sweep.dir=sweep", folder=folder)
    return folder


def test_every_method_runs_and_experts_are_the_reference(swept: Path):
    found = {method: result for (method, _), result in results(swept / "sweep").items()}
    assert set(found) == {name.removesuffix("_quick") for name in METHODS.split(",")}
    assert found["finetuned"]["average_normalized"] == pytest.approx(100)
    assert found["twin"]["average_normalized"] > found["pretrained"]["average_normalized"]
    assert not any(result["random_weights"] for result in found.values())


def test_text_heads_are_kept(small: list[str], swept: Path, tmp_path: Path):
    """Other epochs make other experts of the same heads; other sentences make other heads."""
    cached = [*small, f"paths.cache={swept / 'outputs/cache'}", "merge_method=twin", "finetune.epochs=1"]
    outcome = succeed(*cached, "hydra.run.dir=job", folder=tmp_path)
    assert not outcome.lines("zero-shot")
    assert [line for line in outcome.lines("text_head") if "cached" in line]
    outcome = succeed(*cached, "backbone.templates={second: ['{}']}", "hydra.run.dir=other", folder=tmp_path)
    assert len([line for line in outcome.lines("text_head") if "computed" in line]) == 1


def test_routed_heads_unseen_tasks_and_the_cache(small: list[str], swept: Path, tmp_path: Path):
    cached = [*small, f"paths.cache={swept / 'outputs/cache'}"]
    outcome = succeed("merge_method=twin", "evaluation.heads=routed", *cached, "hydra.run.dir=routed", folder=tmp_path)
    assert not outcome.lines("fine-tune")
    given = ["merge_method=twin", "tasks.unseen=[third]", "evaluation.unseen_head=frozen", *cached]
    succeed(*given, "hydra.run.dir=unseen", folder=tmp_path)
    entry = json.loads((tmp_path / "unseen/results.json").read_text())["tasks"]["third"]
    assert entry["unseen"] == "frozen"
    assert 0 <= entry["raw"] <= 1


def test_an_expert_is_imported_from_where_another_run_saved_it(small: list[str], swept: Path, tmp_path: Path):
    (run,) = plan([*small, f"paths.cache={swept / 'outputs/cache'}", "merge_method=twin"], multirun=False).jobs
    stages = Stages(run, Cache(swept / "outputs/cache"))
    given = "{" + ",".join(f"{name}: {stages.get(stages.expert(name)).folder}" for name in NAMES) + "}"
    succeed("merge_method=twin", *small, f"experts.sources={given}", "hydra.run.dir=job", folder=tmp_path)
    found = json.loads((tmp_path / "job/results.json").read_text())
    before = results(swept / "sweep")["twin", "oracle"]
    assert found["average_raw"] == before["average_raw"]


def test_published_image_encoders_are_the_experts_that_they_were(small: list[str], swept: Path, tmp_path: Path):
    """Each expert's image encoder alone, as its publisher would save it: text makes the head anew."""
    (run,) = plan([*small, f"paths.cache={swept / 'outputs/cache'}", "merge_method=twin"], multirun=False).jobs
    stages = Stages(run, Cache(swept / "outputs/cache"))
    for name in NAMES:
        state = load_file(stages.get(stages.expert(name)).folder / "model.safetensors")
        kept = {key.removeprefix("encoder."): tensor for key, tensor in state.items() if key.startswith("encoder.")}
        (tmp_path / f"of_{name}").mkdir()
        save_file(kept, tmp_path / f"of_{name}" / "weights.safetensors")
    published = ["experts.source='of_{task}'", "experts.reference={first: 50, second: 40, third: 80}"]
    by = "experts.normalize_by=published"
    outcome = succeed("merge_method=twin", *small, *published, by, "hydra.run.dir=job", folder=tmp_path)
    assert not outcome.lines("fine-tune")
    found, before = json.loads((tmp_path / "job/results.json").read_text()), results(swept / "sweep")["twin", "oracle"]
    assert found["average_raw"] == before["average_raw"]
    assert found["reference"] == PUBLISHED
    for name, reference in (("first", 0.5), ("second", 0.4), ("third", 0.8)):
        entry = found["tasks"][name]
        assert (entry["reference"], entry["measured"]) == (reference, before["tasks"][name]["reference"])
        assert entry["normalized"] == pytest.approx(100 * entry["raw"] / reference)
        assert found["experts"][name]["raw"] == pytest.approx(100 * entry["measured"])
    says = ["experts.labels.first", "text makes one"]
    refused("merge_method=twin", *small, *published, "experts.labels={first: [a, b, c]}", folder=tmp_path, says=says)


def test_what_makes_an_expert_new(small: list[str]):
    def keys(*changed: str) -> list[str]:
        (run,) = plan([*small, *changed], multirun=False).jobs
        return [stage.key for stage in Stages(run, Cache(Path("nowhere"))).experts]

    before = keys()
    for change in ("backbone.templates={second: ['{}']}", "finetune.task_epochs={second: 2}"):
        assert [new == old for new, old in zip(keys(change), before, strict=True)] == [True, False, True]
    assert keys("finetune.task_epochs={second: 3}") == before
    assert not set(keys("backbone.image_size=40")) & set(before)


def test_random_weights_are_warned_of(small: list[str], tmp_path: Path):
    name = "tiny_for_tests"
    plugin = "import open_clip, pathlib\nopen_clip.add_model_config(pathlib.Path(__file__).parent / 'models')\n"
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / f"{name}.json").write_text(json.dumps(MODEL))
    (tmp_path / "tiny_model.py").write_text(plugin)
    assert name not in open_clip.list_models()
    arguments = [argument for argument in small if not argument.startswith("backbone.pretrained")]
    succeed(
        *arguments, "plugins=[tiny_model]", f"backbone.model={name}", "backbone.pretrained=null", "merge_method=twin",
        "hydra.run.dir=job", folder=tmp_path,
    )  # fmt: skip
    found = json.loads((tmp_path / "job/results.json").read_text())
    assert found["random_weights"]
    assert found["backbone"] == f"{name} random weights"
    assert RANDOM_WARNING in (tmp_path / "job/table.md").read_text()


def test_a_name_that_open_clip_does_not_know_is_refused_before_any_work(small: list[str], tmp_path: Path):
    arguments = [argument for argument in small if not argument.startswith("backbone.pretrained")]
    says = ["backbone.model", "ViT-B-23", "ViT-B-32"]
    refused(*arguments, "backbone.model=ViT-B-23", "backbone.pretrained=null", folder=tmp_path, says=says)
