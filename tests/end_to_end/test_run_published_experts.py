"""Experts that are not trained here, one by one, and what is published of them; values of what does not merge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
from commands import refused, results, succeed
from safetensors.torch import load_file, save_file
from sweeps import Finished

OUTPUTS = [2, 0, 1]  # of the class of each output in the published head's order


@pytest.fixture
def experts(finished: Finished, tmp_path: Path) -> dict[str, Path]:
    """Experts trained before, in folders whose names have nothing in common, as others would publish them."""
    found = {json.loads(path.read_text())["task"]: path.parent for path in finished.cache.glob("expert/*/expert.json")}
    places = {name: tmp_path / f"somewhere{number}" for number, name in enumerate(tiny.TASKS)}
    for name, place in places.items():
        shutil.copytree(found[name], place)
        (place / "expert.json").unlink()
    return places


def sources(experts: dict[str, Path]) -> str:
    return "experts.sources={" + ",".join(f"{name}:'{place}'" for name, place in experts.items()) + "}"


def raws(result: dict) -> dict[str, float]:
    return {name: task["raw"] for name, task in result["tasks"].items()}


def exchange_outputs(expert: Path, names: list[str]) -> None:
    """Give a head of three classes another order of outputs, called by ``names`` of the old order."""
    weights = load_file(expert / "model.safetensors")
    for part in ("classifier.weight", "classifier.bias"):
        weights[part] = weights[part][OUTPUTS].contiguous()
    save_file(weights, expert / "model.safetensors", {"format": "pt"})
    config = json.loads((expert / "config.json").read_text())
    config["id2label"] = {str(place): names[old] for place, old in enumerate(OUTPUTS)}
    config["label2id"] = {name: int(place) for place, name in config["id2label"].items()}
    (expert / "config.json").write_text(json.dumps(config))


def test_heads_whose_outputs_are_named_answer_as_before_in_any_order(
    experts: dict[str, Path], reuse: list[str], finished: Finished, tmp_path: Path
):
    exchange_outputs(experts["answer"], [name.upper() for name in tiny.ANSWERS])
    published = ["experts.reference={colour:99.0,size:1.0}", "experts.tolerance=5"]
    outcome = succeed("merge_method=twin", *reuse, sources(experts), *published, "hydra.run.dir=run", folder=tmp_path)
    given, own = results(tmp_path / "run")["twin", "oracle"], results(finished.folder)["twin", "oracle"]
    assert raws(given) == raws(own)
    size = given["experts"]["size"]
    assert set(given["experts"]) == {"colour", "size"}
    assert size["raw"] == pytest.approx(100 * own["tasks"]["size"]["reference"])
    assert size["off"]
    assert outcome.lines("warning", "size expert", "1.00")
    assert "Off by more than the tolerance" in (tmp_path / "run/table.md").read_text()


def test_outputs_without_names_are_told_apart_by_the_configuration(
    experts: dict[str, Path], reuse: list[str], finished: Finished, tmp_path: Path
):
    exchange_outputs(experts["answer"], ["LABEL_0", "LABEL_1", "LABEL_2"])
    named = [list(tiny.ANSWERS)[old] for old in OUTPUTS]
    for number, labels in enumerate([[], [f"experts.labels={{answer:[{','.join(named)}]}}"]]):
        place = f"run{number}"
        succeed("merge_method=finetuned", *reuse, sources(experts), *labels, f"hydra.run.dir={place}", folder=tmp_path)
    wrong, right = (results(tmp_path / f"run{number}")["finetuned", "oracle"] for number in (0, 1))
    own = results(finished.folder)["finetuned", "oracle"]
    assert raws(right) == raws(own)
    assert raws(wrong)["answer"] < raws(own)["answer"]


def test_a_head_of_other_classes_is_refused(experts: dict[str, Path], reuse: list[str], tmp_path: Path):
    exchange_outputs(experts["answer"], ["yes", "no", "perhaps"])
    says = ["classes are not those", "refused, agreed, unsure", "experts.labels"]
    refused("merge_method=twin", *reuse, sources(experts), folder=tmp_path, says=says)


def test_a_source_of_an_unknown_task_is_refused(reuse: list[str], tmp_path: Path):
    says = ["experts.sources", "color", "nearest", "colour"]
    refused("merge_method=twin", *reuse, "experts.sources={color:somewhere}", folder=tmp_path, says=says)


# --- what does not merge ----------------------------------------------------------------------------------------------

KEPT = ("parameters.exclude=[.*bias.*]", "sparsifier=none", "router=oracle")


def without_rank(arguments: list[str]) -> list[str]:
    return [text for text in arguments if not text.startswith(("router.", "sparsifier."))]


def test_with_the_experts_own_values_of_the_rest_twin_is_the_expert(
    reuse: list[str], finished: Finished, tmp_path: Path
):
    """Nothing is compressed and the router is right, so that only what does not merge is between twin and the experts."""
    arguments = ["merge_method=twin", *without_rank(reuse), *KEPT]
    for excluded in ("task", "pretrained"):
        succeed(*arguments, f"evaluation.excluded={excluded}", f"hydra.run.dir={excluded}", folder=tmp_path)
    task, pretrained = (results(tmp_path / each)["twin", "oracle"] for each in ("task", "pretrained"))
    own = raws(results(finished.folder)["finetuned", "oracle"])
    assert raws(task) == pytest.approx(
        own, abs=1e-3
    )  # float32's rounding may exchange neighbours in a rank correlation
    assert raws(pretrained) != pytest.approx(own, abs=1e-2)
    assert "leaks the task" in task["leaks"][0]
    assert not pretrained["leaks"]
    assert "leaks the task" in (tmp_path / "task/table.csv").read_text()
    assert "leaks" not in (tmp_path / "pretrained/table.csv").read_text()


def test_so_is_a_static_method_of_one_task(reuse: list[str], finished: Finished, tmp_path: Path):
    one = [text for text in reuse if not text.startswith("tasks.names")]
    arguments = ["merge_method=task_arithmetic", "tasks.names=[size]", *one, "parameters.exclude=[.*bias.*]"]
    for excluded in ("task", "pretrained"):
        given = ["merge_method.grid=[1.0]", f"evaluation.excluded={excluded}", f"hydra.run.dir={excluded}"]
        succeed(*arguments, *given, folder=tmp_path)
    task, pretrained = (results(tmp_path / each)["task_arithmetic", "oracle"] for each in ("task", "pretrained"))
    own = raws(results(finished.folder)["finetuned", "oracle"])["size"]
    assert raws(task) == {"size": pytest.approx(own, abs=1e-3)}
    scores = [
        [each["scores"]["1.0"] for each in run["choices"] if each["what"] == "scaling"] for run in (task, pretrained)
    ]
    assert scores[0] == [pytest.approx(100, abs=0.1)]  # λ is chosen under what answers later
    assert scores[1] != [pytest.approx(100, abs=0.1)]


@pytest.mark.parametrize("other", ["evaluation.heads=routed", "merge_method=surgery"])
def test_what_cannot_have_the_true_tasks_values_is_refused(other: str, small: list[str], tmp_path: Path):
    refused(*small, "evaluation.excluded=task", other, folder=tmp_path, says=["evaluation.excluded", "pretrained"])


# --- the router's rows ------------------------------------------------------------------------------------------------


def test_a_router_of_training_rows_reads_the_first_and_says_so(reuse: list[str], tmp_path: Path):
    settings = ["router.source=train", "router.rows=20", "router.selection=last", "tasks.order=source"]
    outcome = succeed("merge_method=twin", *reuse, *settings, "hydra.run.dir=run", folder=tmp_path)
    result = results(tmp_path / "run")["twin", "oracle"]
    assert result["routing"]["trained_on"] == "train"
    assert result["routing"]["train_rows"] == 3 * 16
    assert not [choice for choice in result["choices"] if "router" in choice["what"]]
    assert outcome.lines("encode", "train rows")
    order = {name: about["order"] for name, about in result["provenance"]["data"].items()}
    assert set(order.values()) == {"source"}


def test_a_published_expert_of_an_unseen_task_is_checked_before_anything_is_trained(
    experts: dict[str, Path], small: list[str], tmp_path: Path
):
    exchange_outputs(experts["answer"], ["yes", "no", "perhaps"])
    arguments = [*small, "tasks.unseen=[answer]", f"experts.sources={{answer: '{experts['answer']}'}}"]
    outcome = refused("merge_method=twin", *arguments, folder=tmp_path, says=["classes are not those"])
    assert not outcome.lines("expert", "computed in")
