"""λ of a language model's merge, chosen on rows that its experts hold out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_exams
from commands import results, succeed
from oracles.language import nats_a_token
from peft import PeftModel
from test_run_language import computed, stage_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

GRID, TIES = [0.0, 0.2, 0.6], [0.1, 0.7]


@pytest.fixture(scope="module")
def folder(language_job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter from a linear method, tensors from another one, and a twin on the former."""
    place = tmp_path_factory.mktemp("grid")
    jobs = {
        "linear": ["merge_method=task_arithmetic", f"merge_method.grid={GRID}"],
        "other": ["merge_method=ties", f"merge_method.grid={TIES}"],
        "twin": ["merge_method=twin", f"merge_method.shared.grid={GRID}"],
    }
    for name, arguments in jobs.items():
        given = [argument.replace(" ", "") for argument in arguments]
        outcome = succeed(*language_job, *given, f"hydra.run.dir={name}", folder=place)
        assert ("merge" in computed(outcome)) == (name != "twin")  # which shares its grid with the static method
    return place


def choice_of(folder: Path) -> dict[str, Any]:
    (result,) = results(folder).values()
    (choice,) = (each for each in result["choices"] if each["what"] == "scaling")
    used = [task["used"]["validation"] for task in result["provenance"]["data"].values()]
    assert (choice["split"], choice["rows"]) == ("validation", sum(used))
    return choice


def held_out(folder: Path, name: str) -> list[tuple[str, str]]:
    """The validation rows of a task, as the run has kept them."""
    (kept,) = (
        json.loads((path.parent / "validation.json").read_text())
        for path in (folder / "outputs/cache/data").glob("*/manifest.json")
        if json.loads(path.read_text())["label"] == f"{name}, to learn from"
    )
    return [(prompt, completion) for prompt, completion in kept]


def test_it_is_that_of_the_likeliest_completions_by_pefts_own_products(folder: Path, language_base: Path):
    def model() -> Any:
        return AutoModelForCausalLM.from_pretrained(language_base)

    start, tokenizer = model().state_dict(), AutoTokenizer.from_pretrained(language_base)
    experts = [
        PeftModel.from_pretrained(model(), stage_folder(folder, "expert", name)).merge_and_unload().state_dict()
        for name in tiny_exams.TASKS
    ]
    rows, likely = [held_out(folder, name) for name in tiny_exams.TASKS], {}
    for value in GRID:
        merged = model()
        merged.load_state_dict(
            {key: tensor + value * sum(expert[key] - tensor for expert in experts) for key, tensor in start.items()}
        )
        likely[value] = -sum(nats_a_token(merged, tokenizer, each) for each in rows) / len(rows)
    choice = choice_of(folder / "linear")
    assert choice["scores"] == pytest.approx({str(value): score for value, score in likely.items()}, rel=1e-4)
    assert choice["chosen"] == max(likely, key=lambda value: likely[value])
    assert choice_of(folder / "twin")["scores"] == choice["scores"]


@pytest.mark.parametrize(("name", "method"), [("linear", "task_arithmetic"), ("other", "ties")])
def test_what_answers_is_the_chosen_one(folder: Path, language_job: list[str], name: str, method: str):
    """A job with that one value answers alike, and the one that is farthest from it does not."""
    choice, (found,) = choice_of(folder / name), results(folder / name).values()
    worst = min(choice["scores"], key=lambda value: choice["scores"][value])
    alike = {}
    for value in (choice["chosen"], worst):
        arguments = [f"merge_method={method}", f"merge_method.scaling={value}", f"hydra.run.dir={name}{value}"]
        succeed(*language_job, *arguments, folder=folder)
        (single,) = results(folder / f"{name}{value}").values()
        alike[value] = [task["scores"] for task in single["tasks"].values()] == [
            task["scores"] for task in found["tasks"].values()
        ]
    assert alike == {choice["chosen"]: True, worst: False}
