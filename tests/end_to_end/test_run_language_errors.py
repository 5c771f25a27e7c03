"""What goes wrong with language models: said before work where it can be known, and nothing that is finished is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import refused, results, run, succeed
from peft import LoraConfig, get_peft_model
from test_run_full_disk import check_that_nothing_is_lost
from transformers import AutoModelForCausalLM, LlamaConfig


def adapter(folder: Path, model) -> Path:
    """A LoRA adapter of a model, as PEFT saves it."""
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tasks.names=[mmlu,hellaswag]"], ["tasks.names", "hellaswag", "gsm8k"]),
        (["tasks.parts={mmlu: [biologie]}"], ["mmlu biologie", "nearest", "biology"]),
        (["tasks.parts={mmlo: [law]}"], ["tasks.parts", "mmlo", "nearest", "mmlu"]),
        (["tasks.names=[mmlu,synthetic_reasoning]", "tasks.parts={synthetic_reasoning: [inductions]}"],
         ["tasks.parts.synthetic_reasoning", "inductions", "nearest", "induction"]),
        (["tasks.names=[mmlu,truthful_qa]"], ["paths.data", "truthful_qa is missing", "TruthfulQA.csv"]),
        (["tasks.shots=200", "backbone.context=64"], ["context is too short"]),
        (["parameters.include=[nothing]"], ["parameters", "no parameter is left"]),
        (["sparsifier.rank=500"], ["sparsifier.rank", "1 to"]),
        (["router.layer=9"], ["router.layer", "fewer layers"]),
        (["finetune.targets=.*query"], ["finetune.targets", "no matrix", "q_proj"]),
        (["finetune.task_targets={gsm8k: .*down}"], ["finetune.task_targets.gsm8k", ".*down", "down_proj"]),
        (["finetune.targets='(q_proj'"], ["finetune.targets", "regular expression"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_before_work(
    language_job: list[str], tmp_path: Path, arguments: list[str], says: list[str]
):
    outcome = refused(*language_job, *arguments, folder=tmp_path, says=says)
    assert not outcome.lines("  expert ")


def test_an_adapter_that_does_not_fit_is_named(language_job: list[str], language_base: Path, tmp_path: Path):
    place = adapter(tmp_path / "adapter", AutoModelForCausalLM.from_pretrained(language_base))
    config = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    wider = LlamaConfig(**{**LlamaConfig.from_pretrained(language_base).to_dict(), "hidden_size": 48})
    other = adapter(tmp_path / "other", AutoModelForCausalLM.from_config(wider))
    for folder, says in ((place, "use_dora"), (other, "does not fit the base")):
        arguments = ["merge_method=task_arithmetic", f"experts.sources={{mmlu: '{folder}'}}"]
        outcome = refused(*language_job, *arguments, folder=tmp_path, says=[says, str(folder)])
        assert not outcome.lines("fine-tune")
    outcome = run(
        *language_job, "merge_method=task_arithmetic", "experts.sources={mmlu: /nowhere/at/all}", folder=tmp_path
    )
    assert outcome.code == 2
    assert "experts.sources.mmlu" in outcome.text


def test_a_model_with_code_of_its_own_is_refused_before_any_work(language_job, language_base, tmp_path):
    foreign = shutil.copytree(language_base, tmp_path / "foreign")
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps(config | {"model_type": "qwen", "auto_map": {"AutoConfig": "x.Y"}}))
    says = ["backbone.trust_remote_code", "qwen2_5_14b"]
    refused(*language_job, f"backbone.pretrained={foreign}", folder=tmp_path, says=says)


def test_a_budget_that_whole_models_do_not_fit_is_refused_before_any_expert(language_job, tmp_path):
    own = [argument for argument in language_job if not argument.startswith("finetune")]
    tiny_budget = ["finetune=causal_full", "merge_method=twin", "sparsifier.rank=null", "sparsifier.budget=1000"]
    outcome = refused(*own, *tiny_budget, folder=tmp_path, says=["sparsifier.budget", "at least"])
    assert not outcome.lines("fine-tune")


@pytest.mark.parametrize("judge", ["native", "helm"])
def test_a_model_that_says_nothing_is_wrong_everywhere_and_a_result(language_job, language_base, tmp_path, judge):
    silent = shutil.copytree(language_base, tmp_path / "silent")
    model = AutoModelForCausalLM.from_pretrained(silent)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # of equal tokens the first is taken, which ends a text
    model.save_pretrained(silent)
    given = [argument for argument in language_job if not argument.startswith("tasks.names")]
    settings = [f"backbone.pretrained={silent}", "tasks.names=[mmlu,gsm8k]", f"evaluation={judge}", "finetune.epochs=1"]
    succeed(*given, *settings, "merge_method=pretrained", "hydra.run.dir=said", folder=tmp_path)
    found = results(tmp_path / "said")["pretrained", "none"]
    assert [task["raw"] for task in found["tasks"].values()] == [0, 0]
    (answers,) = (path for path in tmp_path.rglob("answers.json") if len(json.loads(path.read_text())) == 2)
    assert {text for parts in json.loads(answers.read_text()).values() for texts in parts for text in texts} == {""}


def test_a_disk_that_fills_up_in_the_middle_loses_no_expert(language_job: list[str], tmp_path: Path):
    check_that_nothing_is_lost(language_job, tmp_path, "none")
