"""Every stage of a job on a GPU, by run.py: the tiny tasks, and the tiny language model."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_exams
from backbones.tiny_language import save_language
from commands import finish, results, start

METHODS = "pretrained,finetuned,weight_averaging,task_arithmetic,ties,dare_ties,tsv_merge,fisher,regmean,emr,twin"
BOTH = "evaluation.heads=oracle,routed"


def succeed(*arguments: str, folder: Path) -> None:
    """Run a command in a process of its own: CUDA does not survive a fork."""
    outcome = finish(start(*arguments, folder=folder))
    assert outcome.code == 0, outcome.text


def there(arguments: list[str], cuda: str) -> list[str]:
    return [f"device={cuda}" if argument == "device=cpu" else argument for argument in arguments]


def test_experts_learn_and_every_method_merges_them(small, cuda, tmp_path):
    succeed("-m", f"merge_method={METHODS}", BOTH, *there(small, cuda), "hydra.sweep.dir=sweep", folder=tmp_path)
    found = results(tmp_path / "sweep")
    assert len(found) == 22
    for result in found.values():
        assert result["provenance"]["device"] == cuda
    before, after = (found[method, "oracle"]["tasks"] for method in ("pretrained", "finetuned"))
    for name, task in after.items():  # in any order of the sums
        assert task["raw"] > before[name]["raw"] + 0.2
    for heads in ("oracle", "routed"):
        average = {method: result["average_normalized"] for (method, own), result in found.items() if own == heads}
        assert min(average["twin"], average["emr"]) > average["weight_averaging"] + 10


@pytest.mark.parametrize("method", ["adamerging", "wudi", "surgery", "multitask"])
def test_methods_that_learn(method, small, cuda, tmp_path):
    steps = [] if method == "multitask" else ["merge_method.steps=30"]
    two = "tasks.names=[colour,answer]"
    succeed(f"merge_method={method}", *steps, *there(small, cuda), two, folder=tmp_path)
    (result,) = results(tmp_path).values()
    assert result["average_normalized"] > 40


def test_bfloat16_of_its_own_accord(small, cuda, tmp_path):
    own = [argument for argument in there(small, cuda) if not argument.startswith("precision")]
    succeed("merge_method=twin", "inference=exact", *own, folder=tmp_path)
    (result,) = results(tmp_path).values()
    assert result["provenance"]["precision"] == "bf16" or cuda == "cpu"
    assert result["average_normalized"] > 80
    assert result["inference"]


@pytest.mark.parametrize("finetune", ["causal_lora", "causal_full"])
def test_language_models(finetune, cuda, tmp_path):
    base = save_language(tmp_path / "base", context=1024, words=tiny_exams.WORDS)
    arguments = [
        "backbone=smollm2", f"backbone.pretrained={base}", "tasks=generative", f"tasks.names=[{','.join(tiny_exams.TASKS)}]",
        "tasks.shots=0", f"paths.data={tiny_exams.save_exams(tmp_path / 'exams')}", f"finetune={finetune}",
        "finetune.epochs=12", "finetune.batch_size=8", "finetune.max_length=512", "evaluation=native",
        "router.source=train", "router.epochs=60", "router.lr=5e-3", f"device={cuda}",
    ]  # fmt: skip
    arguments += (
        ["finetune.rank=8", "finetune.alpha=16", "finetune.lr=2e-2"]
        if finetune == "causal_lora"
        else ["finetune.lr=3e-3"]
    )
    methods = "merge_method=pretrained,finetuned,weight_averaging,ties,twin"
    succeed("-m", methods, *arguments, "sparsifier.rank=24", "hydra.sweep.dir=sweep", folder=tmp_path)
    found = {method: result["average_normalized"] for (method, _), result in results(tmp_path / "sweep").items()}
    assert found["finetuned"] == 100
    assert found["twin"] > found["weight_averaging"]
    assert found["finetuned"] > found["pretrained"]
