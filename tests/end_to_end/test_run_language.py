"""Tasks that a language model answers by text, through ``run.py``: experts, merges, twins, both judges."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny_exams
import torch
from commands import Outcome, finish, lasting, numbers, refused, results, start, succeed, wait_until
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

METHODS = "pretrained,finetuned,weight_averaging,task_arithmetic,ties,twin"


@pytest.fixture(scope="module")
def folder(language_job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all methods ran from an empty cache, into ``sweep``."""
    place = tmp_path_factory.mktemp("language")
    arguments = [f"merge_method={METHODS}", "sparsifier.rank=24", "hydra.sweep.dir=sweep"]
    succeed("-m", *language_job, *arguments, folder=place)
    return place


def scores(result: dict[str, Any], key: str = "normalized") -> dict[str, float]:
    return {name: task[key] for name, task in result["tasks"].items()}


def one(language_job: list[str], folder: Path, name: str, *arguments: str) -> tuple[dict[str, Any], Outcome]:
    """The results of one more job on the same cache."""
    outcome = succeed(*language_job, *arguments, f"hydra.run.dir={name}", folder=folder)
    return json.loads((folder / name / "results.json").read_text()), outcome


def computed(outcome: Outcome) -> set[str]:
    """The names of the stages that a job computed."""
    return {line.split()[0] for line in outcome.lines("computed in")}


def test_experts_learn_their_tasks_and_merging_takes_something(folder: Path):
    found = {method: result for (method, _), result in results(folder / "sweep").items()}
    assert list(found["finetuned"]["tasks"]) == list(tiny_exams.TASKS)
    assert min(scores(found["finetuned"], "raw").values()) > 0.8
    assert found["finetuned"]["average_normalized"] == 100
    assert found["pretrained"]["average_normalized"] < 20
    assert found["task_arithmetic"]["average_normalized"] < 60 < 90 < found["twin"]["average_normalized"]


def test_results_say_all_that_was_asked_and_scored(folder: Path):
    found = results(folder / "sweep")["twin", "none"]
    task = found["tasks"]["mmlu"]
    assert (task["metric"], task["judge"], task["rows"]) == ("exact_match", "native", 24)
    assert task["parts"].keys() == set(tiny_exams.SUBJECTS)
    assert task["scores"].keys() == {"exact_match", "quasi_exact_match"}
    low, high = task["confidence_interval"]
    assert low < task["raw"] <= high + 1e-9
    provenance = found["provenance"]["data"]["gsm8k"]
    assert (provenance["used"], provenance["exams"][0]["rows"]) == ({"train": 36, "validation": 4}, 10)
    assert provenance["files"].keys() == {"gsm_data_train", "gsm_data_test"}
    assert found["provenance"]["checkpoints"].keys() == {"base", "expert mmlu", "expert gsm8k", "expert xsum"}
    assert found["offline_suite"] is False
    assert not any(choice["split"] == "test" for choice in found["choices"])
    routing = found["routing"]
    assert routing["task_names"] == list(tiny_exams.TASKS)
    assert [sum(row) for row in routing["confusion"]] == [24, 10, 10]
    assert routing["accuracy"] == sum(row[index] for index, row in enumerate(routing["confusion"])) / 44 > 0.9
    stored = found["costs"]["stored"]
    assert stored["heads"]["bytes"] == 0 < stored["router"]["bytes"] < stored["encoder"]["bytes"]
    assert found["costs"]["training_tokens"]["after_experts"] > 0


def test_the_table_has_intervals_and_no_heads(folder: Path):
    header, _, *rows = [line for line in (folder / "sweep/table.md").read_text().splitlines() if line.startswith("|")]
    assert "heads" not in header
    assert len(rows) == len(METHODS.split(","))
    assert "100.0 (86.2 to 100.0) / 100.0" in next(row for row in rows if row.startswith("| finetuned"))


def stage_folder(folder: Path, name: str, label: str) -> Path:
    """The artefact of a stage in the cache, of an expert that which is an adapter."""
    holds = {"expert": "adapter_config.json"}.get(name, "manifest.json")
    (found,) = [
        path.parent
        for path in (folder / "outputs/cache" / name).glob("*/manifest.json")
        if json.loads(path.read_text())["label"] == label and path.with_name(holds).exists()
    ]
    return found


def test_a_linear_merge_is_an_adapter_by_pefts_own_products(folder: Path, language_base: Path):
    start = AutoModelForCausalLM.from_pretrained(language_base).state_dict()
    total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in start.items()}
    for name in tiny_exams.TASKS:
        model = AutoModelForCausalLM.from_pretrained(language_base)
        expert = PeftModel.from_pretrained(model, stage_folder(folder, "expert", name)).merge_and_unload().state_dict()
        for key in total:
            total[key] += expert[key].double() - start[key].double()
    place = stage_folder(folder, "merge", "task_arithmetic")
    assert {path.name for path in place.glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert len(load_file(place / "adapter_model.safetensors")) == 2 * 14  # seven matrices of two layers
    model = AutoModelForCausalLM.from_pretrained(language_base)
    for key, tensor in PeftModel.from_pretrained(model, place).merge_and_unload().state_dict().items():
        torch.testing.assert_close(tensor.double(), start[key].double() + 0.3 * total[key], rtol=0, atol=1e-5)


def test_helm_judges_as_the_native_scores_do(language_job: list[str], folder: Path):
    native = results(folder / "sweep")["twin", "none"]
    helm, outcome = one(language_job, folder, "helm", "merge_method=twin", "sparsifier.rank=24", "evaluation=helm")
    assert computed(outcome) == {"marks", "result"}  # the same answers
    for name, task in helm["tasks"].items():
        assert (task.pop("judge"), native["tasks"][name].pop("judge")) == ("helm", "native")
        expected = native["tasks"][name]
        assert task.keys() == expected.keys()
        for key in task:
            assert task[key] == (pytest.approx(expected[key]) if name == "xsum" else expected[key]), key


def test_again_everything_comes_from_the_cache(language_job: list[str], folder: Path):
    before = results(folder / "sweep")["twin", "none"]
    again, outcome = one(language_job, folder, "again", "merge_method=twin", "sparsifier.rank=24")
    assert numbers(again) == numbers(before)
    assert not computed(outcome)


def test_a_router_of_the_last_token_reads_states_of_its_own(language_job: list[str], folder: Path):
    arguments = ("merge_method=twin", "sparsifier.rank=24", "router.token=last")
    found, outcome = one(language_job, folder, "last-token", *arguments)
    assert computed(outcome) >= {"encode", "router", "result"}
    assert not computed(outcome) & {"expert", "merge", "exclusive"}
    assert found["routing"]["accuracy"] > 0.9


def test_another_seed_keeps_experts_and_merges_that_draw_nothing(language_job: list[str], folder: Path):
    arguments = ["merge_method=twin", "sparsifier.rank=24", "seed=1", "experts.seed=0"]
    result, outcome = one(language_job, folder, "seed", *arguments)
    assert computed(outcome) == {"router", "answer", "marks", "result"}
    assert result["seed"] == 1


def test_a_sweep_that_is_done_is_resumed_without_work(language_job: list[str], folder: Path):
    arguments = [f"merge_method={METHODS}", "sparsifier.rank=24", "hydra.sweep.dir=sweep", "sweep.resume=true"]
    outcome = succeed("-m", *language_job, *arguments, folder=folder)
    assert "6 of 6 jobs are done already" in outcome.text


def test_what_a_cache_lacks_is_made_again_as_it_was(language_job: list[str], folder: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    shutil.copytree(folder / "outputs/cache", cache)
    for name in ("merge", "exclusive", "answer", "marks", "result"):
        shutil.rmtree(cache / name)
    arguments = ["merge_method=twin", "sparsifier.rank=24", f"paths.cache={cache}"]
    result, outcome = one(language_job, tmp_path, "on", *arguments)
    assert computed(outcome) == {"merge", "exclusive", "answer", "marks", "result"}
    before = results(folder / "sweep")["twin", "none"]
    assert lasting(result)["tasks"] == before["tasks"]
    assert result["provenance"]["checkpoints"] == before["provenance"]["checkpoints"]


def test_killed_fine_tuning_goes_on_from_its_checkpoint(language_job: list[str], folder: Path, tmp_path: Path):
    arguments = [*language_job, "merge_method=finetuned", "tasks.names=[xsum]"]
    process = start(*arguments, "hydra.run.dir=killed", folder=tmp_path)
    unfinished = tmp_path / "outputs/cache/unfinished"
    assert wait_until(lambda: any(unfinished.glob("expert-*/checkpoint-*/complete")), process), finish(process).text
    process.kill()
    assert finish(process).code == -signal.SIGKILL
    assert not list(tmp_path.glob("outputs/cache/expert/*/manifest.json"))
    _, outcome = one(arguments, tmp_path, "on")
    assert outcome.lines("xsum", "goes on from step"), outcome.text
    own, whole = (stage_folder(place, "expert", "xsum") / "adapter_model.safetensors" for place in (tmp_path, folder))
    assert own.read_bytes() == whole.read_bytes()


def test_a_true_route_and_all_ranks_are_the_experts(language_job: list[str], folder: Path):
    arguments = ["merge_method=twin", "router=oracle", "inference=group_wise", "inference.groups=2"]
    kept = [argument for argument in language_job if not argument.startswith("router.")]
    for sparsifier in (["sparsifier=none"], ["sparsifier.rank=24"]):  # dense matrices, and factors
        name = "_".join(sparsifier).replace("=", "_")
        result, _ = one(kept, folder, f"oracle_{name}", *arguments, *sparsifier)
        assert scores(result) == dict.fromkeys(tiny_exams.TASKS, 100)


def test_an_svd_of_dense_matrices_is_that_of_the_factors(language_job: list[str], folder: Path):
    """On a shared expert that is not linear, and on one that is, with a rank that only the spectrum tells."""
    arguments = ["merge_method=twin", "merge_method@merge_method.shared=ties", "sparsifier.rank=8"]
    result, outcome = one(language_job, folder, "ties", *arguments)
    assert "basis" in computed(outcome)
    assert result["average_normalized"] > 60
    result, _ = one(language_job, folder, "energy", "merge_method=twin", "sparsifier.energy=0.999")
    assert result["average_normalized"] > 90


def test_experts_that_others_trained_and_tasks_without_an_expert(language_job: list[str], folder: Path):
    adapters = {name: stage_folder(folder, "expert", name) for name in tiny_exams.TASKS}
    for place in adapters.values():
        assert {path.name for path in place.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    sources = "{" + ", ".join(f"{name}: '{place}'" for name, place in adapters.items()) + "}"
    result, _ = one(
        language_job,
        folder,
        "imported",
        "merge_method=task_arithmetic",
        f"experts.sources={sources}",
        "tasks.unseen=[xsum]",
    )
    assert result["tasks"]["xsum"]["unseen"] == "expert"
    assert result["average_raw"] == pytest.approx(sum(scores(result, "raw")[name] for name in ("mmlu", "gsm8k")) / 2)
    assert result["costs"]["training_tokens"]["experts"] is None
    own = results(folder / "sweep")["finetuned", "none"]
    assert scores(result, "reference") == scores(own, "raw")


def test_whole_models_merge_too(language_job: list[str], folder: Path, language_base: Path):
    arguments = ["merge_method=weight_averaging", "finetune=causal_full", "tasks.names=[mmlu,xsum]", "finetune.lr=2e-3"]
    kept = [argument for argument in language_job if not argument.startswith(("finetune", "tasks.names"))]
    result, _ = one(kept, folder, "full", *arguments, "finetune.epochs=2", "finetune.batch_size=8")
    assert result["costs"]["stored"]["encoder"]["bytes"] > 0
    assert set(result["tasks"]) == {"mmlu", "xsum"}


def test_joint_training_takes_the_experts_rows_and_stores_one_adapter(language_job, folder, tmp_path):
    result, outcome = one(language_job, folder, "joint", "merge_method=multitask")
    assert "multitask" in computed(outcome)
    before = {method: result for (method, _), result in results(folder / "sweep").items()}
    assert scores(result).keys() == scores(before["finetuned"]).keys()
    assert result["average_normalized"] > before["weight_averaging"]["average_normalized"]
    tokens = result["costs"]["training_tokens"]
    assert tokens["multitask"] == tokens["experts"] == tokens["after_experts"] > 0
    stored = {name: each["costs"]["stored"]["encoder"] for name, each in {**before, "multitask": result}.items()}
    own = stored["multitask"]["parameters"] - stored["pretrained"]["parameters"]
    assert 0 < 3 * own == stored["finetuned"]["parameters"] - stored["pretrained"]["parameters"]
    assert [choice["what"] for choice in result["choices"]].count("epoch of all tasks") == 1
    assert "expert all tasks" in result["provenance"]["checkpoints"]
    left_out, _ = one(language_job, folder, "left_out", "merge_method=multitask", "tasks.unseen=[xsum]")
    assert left_out["tasks"]["xsum"]["unseen"] == "expert"
    assert left_out["costs"]["training_tokens"]["multitask"] < tokens["multitask"]


@pytest.mark.parametrize("inference", ["exact", "group_wise"])
def test_answers_are_timed_beside_those_of_one_model(inference, language_job, folder, tmp_path):
    twin = ["merge_method=twin", "sparsifier.rank=24", f"inference={inference}", "evaluation.timing=4"]
    found = {}
    for name, arguments in (("static", ["merge_method=ties", "evaluation.timing=4"]), ("twin", twin)):
        result, outcome = one(language_job, folder, f"timed_{inference}/{name}", *arguments)
        found[name] = result["inference"]
        assert found[name]["machine"] in " ".join(outcome.text.split())
    for record in found.values():
        assert record["rows"] == 4
        assert record["new_tokens"] >= record["rows"]
        assert record["ratio"] == pytest.approx(record["seconds_per_1000"] / record["static_seconds_per_1000"])
    assert found["static"]["ratio"] == 1
    _, again = one(
        language_job, folder, f"timed_{inference}/pretrained", "merge_method=pretrained", "evaluation.timing=4"
    )
    assert "timing" not in computed(again)  # whichever weights one model has


def test_each_task_may_have_layers_of_its_own(language_job, folder, tmp_path):
    own = "finetune.task_targets={mmlu: .*up_proj, gsm8k: .*down_proj}"
    result, outcome = one(language_job, folder, "own_layers", "merge_method=task_arithmetic", own)
    assert computed(outcome) >= {"expert", "merge"}
    trained = [line for line in outcome.lines("computed in") if line.split()[0] == "expert"]
    assert [line.split()[1] for line in trained] == ["mmlu", "gsm8k"]  # xsum's as before
    touched = []
    for record in (folder / "outputs/cache/expert").glob("*/expert.json"):
        if not (record.parent / "adapter_model.safetensors").is_file() or "task" not in json.loads(record.read_text()):
            continue  # a whole model, or an imported one, of another test
        names = {
            name.split(".lora_")[0].rpartition(".")[2]
            for name in load_file(record.parent / "adapter_model.safetensors")
        }
        touched.append((json.loads(record.read_text())["task"], tuple(sorted(names))))
    assert {("mmlu", ("up_proj",)), ("gsm8k", ("down_proj",))} <= set(touched)
    assert result["average_normalized"] > 0
    refused(
        *language_job,
        "finetune.task_targets={mmlux: .*up_proj}",
        folder=folder,
        says=["finetune.task_targets", "mmlux", "mmlu"],
    )
