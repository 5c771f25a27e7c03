"""Methods that see data, and joint training, by run.py on the tiny tasks: from the command line to results.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import Outcome, numbers, refused, results, succeed
from safetensors.torch import load_file

TWO = "tasks.names=[colour,answer]"  # without the regression
QUICK = ["merge_method.steps=30", "merge_method.lr=0.05"]


def only(folder: Path) -> dict:
    """The result of the one job below ``folder``."""
    (result,) = results(folder).values()
    return result


def choice_of(result: dict, what: str) -> dict:
    (choice,) = [choice for choice in result["choices"] if choice["what"] == what]
    return choice


def computed(outcome: Outcome, stage: str) -> int:
    """How many of a stage's artefacts a command computed."""
    return len([line for line in outcome.lines("computed in") if line.split()[0] == stage])


@pytest.mark.parametrize(("method", "stage"), [("fisher", "fisher"), ("regmean", "gram")])
def test_statistics_are_computed_once_an_expert(method, stage, reuse, finished, tmp_path):
    both = "evaluation.heads=oracle,routed"
    outcome = succeed("-m", f"merge_method={method}", both, *reuse, "hydra.sweep.dir=sweep", folder=tmp_path)
    assert computed(outcome, stage) == 3
    found = results(tmp_path)
    assert {heads for _, heads in found} == {"oracle", "routed"}
    for (_, heads), result in found.items():
        assert result["label"] == method
        static = results(finished.folder)["weight_averaging", heads]
        assert result["bytes_stored"] == static["bytes_stored"]
        assert result["average_normalized"] != static["average_normalized"]
        costs = [each["seconds"] for each in result["stages"] if each["name"] == stage]
        assert len(costs) == 3
        assert result["seconds"] >= sum(costs)
    again = succeed("-m", f"merge_method={method}", both, *reuse, "hydra.sweep.dir=again", folder=tmp_path)
    assert not again.lines("computed in")
    twice = results(tmp_path / "again")
    assert all(numbers(twice[key]) == numbers(result) for key, result in results(tmp_path / "sweep").items())


def test_other_options_reuse_the_statistics(reuse, tmp_path):
    succeed("merge_method=fisher", *reuse, folder=tmp_path)
    outcome = succeed("merge_method=fisher", "merge_method.floor=0.5", *reuse, folder=tmp_path)
    assert (computed(outcome, "fisher"), computed(outcome, "merge")) == (0, 1)
    outcome = succeed("merge_method=fisher", "merge_method.rows=5", *reuse, folder=tmp_path)
    assert computed(outcome, "fisher") == 3


def test_sampled_labels_depend_on_the_seed_and_expected_ones_do_not(reuse, tmp_path):
    from twin_merging.compose import plan
    from twin_merging.pipeline.cache import Cache
    from twin_merging.pipeline.data_stages import statistics
    from twin_merging.pipeline.stages import Stages

    def keys(*arguments: str) -> list[str]:
        (run,) = plan(["merge_method=fisher", *reuse, *arguments], multirun=False).jobs
        stages = Stages(run, Cache(tmp_path))
        assert len(statistics(stages, run.merge_method)) == 3
        return [(stage.options, stage.inputs[1].key) for stage in statistics(stages, run.merge_method)]

    assert keys() == keys("seed=1")
    sampled = "merge_method.labels=sampled"
    assert keys(sampled) != keys(sampled, "seed=1")


def test_off_diagonal_from_a_grid_is_the_best_on_validation(reuse, tmp_path):
    outcome = succeed("merge_method=regmean", "merge_method.grid=[0.0,0.7,1.0]", *reuse, folder=tmp_path)
    choice = choice_of(only(tmp_path), "off_diagonal")
    assert choice["split"] == "validation"
    assert [float(value) for value in choice["scores"]] == [0.0, 0.7, 1.0]
    assert choice["scores"][str(choice["chosen"])] == max(choice["scores"].values())
    assert computed(outcome, "merge") == 1


@pytest.mark.parametrize("shared", ["fisher", "regmean"])
def test_twin_on_top_of_a_method_with_statistics(shared, reuse, tmp_path):
    succeed("merge_method=twin", f"merge_method@merge_method.shared={shared}", *reuse, folder=tmp_path)
    result = only(tmp_path)
    assert shared in result["label"]
    assert shared in [stage["label"] for stage in result["stages"] if stage["name"] == "merge"]


@pytest.fixture(scope="module")
def adapted(reuse, tmp_path_factory) -> tuple[str, dict]:
    """AdaMerging and surgery on it with both heads, on the tasks with classes: what was printed, and the results."""
    folder, heads = tmp_path_factory.mktemp("adapted"), "evaluation.heads=oracle,routed"
    arguments = [TWO, *(argument for argument in reuse if not argument.startswith("tasks.names"))]
    first = succeed("-m", "merge_method=adamerging", heads, *QUICK, *arguments, "hydra.sweep.dir=a", folder=folder)
    inner = [argument.replace("merge_method.", "merge_method.merge.") for argument in QUICK]
    second = succeed("-m", "merge_method=surgery", heads, *inner, *arguments, "hydra.sweep.dir=b", folder=folder)
    assert computed(second, "merge") == 0
    return first.text + second.text, results(folder)


def test_adamerging_learns_from_unlabelled_test_inputs_and_says_so(adapted):
    printed, found = adapted
    result = found["adamerging", "oracle"]
    choice = choice_of(result, "λ")
    assert choice["split"] == "unlabelled test inputs"
    assert choice["rows"] == 96
    first, last = choice["scores"].values()
    assert last < first
    assert "unlabelled test inputs" in printed
    assert result["bytes_stored"] < found["surgery", "oracle"]["bytes_stored"]


def test_surgery_comes_nearer_to_the_experts_features(adapted):
    _, found = adapted
    for heads in ("oracle", "routed"):
        result = found["surgery", heads]
        assert result["label"] == "surgery (adamerging)"
        choice = choice_of(result, "adapters")
        assert choice["split"] == "unlabelled test inputs"
        first, last = choice["scores"].values()
        assert last < first
        adapters = result["bytes_stored"] - found["adamerging", heads]["bytes_stored"]
        numbers_in_adapters = 2 * 2 * 16 * 32
        assert 4 * numbers_in_adapters <= adapters < 4 * numbers_in_adapters + 1000
        assert result["average_normalized"] != found["adamerging", heads]["average_normalized"]


def test_surgery_on_another_encoder_and_validation_inputs(reuse, finished, tmp_path):
    options = [
        "merge_method=surgery",
        "merge_method@merge_method.merge=task_arithmetic",
        "merge_method.inputs=validation",
    ]
    outcome = succeed(*options, "merge_method.steps=300", *reuse, folder=tmp_path)
    result = only(tmp_path)
    assert choice_of(result, "adapters")["split"] == "unlabelled validation inputs"
    assert result["label"] == "surgery (task_arithmetic)"
    assert computed(outcome, "merge") == 0  # task_arithmetic's is there
    static = results(finished.folder)["task_arithmetic", "oracle"]
    assert result["average_normalized"] > static["average_normalized"]


def test_twin_on_top_of_adamerging(reuse, tmp_path):
    arguments = [argument for argument in reuse if not argument.startswith("tasks.names")]
    succeed(
        "merge_method=twin", "merge_method@merge_method.shared=adamerging", "merge_method.shared.steps=2", TWO,
        "merge_method.shared.inputs=validation", *arguments, folder=tmp_path,
    )  # fmt: skip
    result = only(tmp_path)
    assert choice_of(result, "λ")["split"] == "unlabelled validation inputs"
    assert "adamerging" in result["label"]


def test_plus_plus_and_task_wise_coefficients(reuse, tmp_path):
    arguments = [TWO, *(argument for argument in reuse if not argument.startswith("tasks.names"))]
    changed = ["merge_method.plus_plus=true", "merge_method.granularity=task_wise", "merge_method.steps=2"]
    outcome = succeed("merge_method=adamerging", *changed, *arguments, folder=tmp_path)
    assert (computed(outcome, "learn"), computed(outcome, "merge")) == (1, 1)
    other = succeed("merge_method=adamerging", *changed, "merge_method.density=0.5", *arguments, folder=tmp_path)
    assert computed(other, "learn") == 1


@pytest.mark.parametrize("place", ["merge_method=adamerging", "merge_method=surgery", "twin"])
def test_entropy_of_a_regression_is_refused_before_any_work(place, reuse, tmp_path):
    chosen = ["merge_method=twin", "merge_method@merge_method.shared=adamerging"] if place == "twin" else [place]
    outcome = refused(*chosen, *reuse, folder=tmp_path, says=["entropy", "size", "classification tasks only"])
    assert not outcome.lines("computed in", "expert")


@pytest.mark.parametrize("name", ["surgery", "multitask"])
def test_what_is_no_merge_of_experts_can_be_no_shared_expert(name, reuse, tmp_path):
    refused(
        "merge_method=twin", f"merge_method@merge_method.shared={name}", *reuse, folder=tmp_path,
        says=["merge_method.shared.name", name, "one encoder merged from the experts"],
    )  # fmt: skip
    refused(
        "merge_method=surgery", f"merge_method@merge_method.merge={name}", *reuse, folder=tmp_path,
        says=["merge_method.merge.name", name, "what surgery operates on"],
    )  # fmt: skip


def test_joint_training_answers_with_its_own_heads(reuse, finished, tmp_path):
    outcome = succeed(
        "-m",
        "merge_method=multitask",
        "evaluation.heads=oracle,routed",
        *reuse,
        "hydra.sweep.dir=sweep",
        folder=tmp_path,
    )
    assert computed(outcome, "joint") == 1
    found = results(tmp_path)
    static = results(finished.folder)
    for heads in ("oracle", "routed"):
        result = found["multitask", heads]
        assert result["bytes_stored"] == static["weight_averaging", heads]["bytes_stored"]
        assert result["average_normalized"] > static["weight_averaging", heads]["average_normalized"]
        choice = choice_of(result, "epoch of multitask")
        assert choice["split"] == "validation"
        assert choice["scores"][str(choice["chosen"])] == max(choice["scores"].values())
        assert (
            result["tasks"]["colour"]["reference"] == static["weight_averaging", heads]["tasks"]["colour"]["reference"]
        )
    again = succeed("merge_method=multitask", *reuse, folder=tmp_path)
    assert not again.lines("computed in")


def test_joint_training_of_adapters_is_refused(reuse, tmp_path):
    arguments = [argument for argument in reuse if not argument.startswith("finetune.")]
    refused("merge_method=multitask", "finetune=lora", *arguments, folder=tmp_path, says=["finetune.name", "multitask"])


def test_a_joint_encoder_is_written_whole(finished, reuse, tmp_path):
    succeed("merge_method=multitask", *reuse, folder=tmp_path)
    (folder,) = (finished.cache / "joint").iterdir()
    encoder, heads = load_file(folder / "encoder.safetensors"), load_file(folder / "heads.safetensors")
    start = load_file(next((finished.cache / "base").glob("*/encoder.safetensors")))
    assert encoder.keys() == start.keys()
    assert any(not torch.equal(encoder[name], start[name]) for name in start)
    assert {name.split(".")[0] for name in heads} == {"colour", "size", "answer"}
    assert json.loads((folder / "choice.json").read_text())["what"] == "epoch of multitask"
