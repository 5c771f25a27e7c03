"""``finetuned`` where the task is unknown: the router chooses the expert too, not its head alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from commands import results, succeed
from sweeps import Finished
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from twin_merging.tasks.base import Task

SEEDLING = ("router.epochs=1", "router.lr=1e-3")  # a router that is often wrong


@pytest.fixture(scope="module")
def ran(reuse: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    some = [argument for argument in reuse if not argument.startswith(("router.epochs", "router.lr"))]
    unknown = [
        "evaluation=task_unknown",
        "evaluation.noise=[0.0]",
        "evaluation.new_domain=false",
        "evaluation.timing=5",
    ]
    succeed("-m", "merge_method=finetuned", "evaluation.heads=oracle,routed", *unknown, *SEEDLING, *some, "hydra.sweep.dir=sweep",
            folder=folder)  # fmt: skip
    return folder / "sweep"


def artefacts(cache: Path, result: dict, stage: str) -> dict[str, Path]:
    return {each["label"]: cache / stage / each["key"] for each in result["stages"] if each["name"] == stage}


def test_every_row_is_answered_by_the_whole_expert_of_its_top_task(ran: Path, finished: Finished, bert: Path):
    result = results(ran)["finetuned", "routed"]
    tasks = {Task.load(path).name: Task.load(path) for path in artefacts(finished.cache, result, "data").values()}
    experts = {
        name: AutoModelForSequenceClassification.from_pretrained(path).eval()
        for name, path in artefacts(finished.cache, result, "expert").items()
    }
    tokenizer = AutoTokenizer.from_pretrained(bert)
    job = next(path.parent for path in ran.rglob("results.json") if json.loads(path.read_text())["heads"] == "routed")
    with (job / "stream.csv").open(newline="") as file:
        stream = list(csv.DictReader(file))
    wrong, heads_alone = 0, 0
    for row in stream:
        task, top = tasks[row["task"]], row["top_task"]
        batch = tokenizer(
            *task.splits["test"].texts[int(row["row"])], truncation=True, max_length=20, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = experts[top](**batch).logits[0]
        if tasks[top].kind == "single_label":
            assert float(row["confidence"]) == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)
            if top != row["task"]:
                wrong += 1
                with torch.inference_mode():
                    states = experts[row["task"]].base_model(**batch).pooler_output
                    other = experts[top].classifier(states)[0].softmax(-1).max()
                heads_alone += abs(float(other) - float(row["confidence"])) < 1e-5
        elif top == row["task"]:
            assert float(row["answer"]) == pytest.approx(float(logits[0]), abs=1e-4)
    assert wrong > 5
    assert heads_alone < wrong  # the true task's expert would have given other states


def test_oracle_heads_are_the_experts_themselves_and_the_stream_is_shared(ran: Path):
    oracle, routed = (results(ran)["finetuned", heads] for heads in ("oracle", "routed"))
    assert oracle["average_normalized"] == 100 > routed["average_normalized"]
    assert oracle["task_unknown"] == routed["task_unknown"]
    assert "chosen" in {stage["name"] for stage in routed["stages"]}
    assert "chosen" not in {stage["name"] for stage in oracle["stages"]}
    for name, cost in routed["task_unknown"]["cost"]["tasks"].items():
        assert cost["score"]["routed"] == routed["tasks"][name]["raw"]
        assert cost["score"]["expert"] == oracle["tasks"][name]["raw"]
        assert cost["score"]["rescued"] == pytest.approx(cost["score"]["expert"], abs=1e-3)
        assert cost["lost_by_weights"] is not None


def test_experts_that_are_routed_to_come_with_the_encoder_that_the_router_reads(finished: Finished):
    found = results(finished.folder)
    one = found["pretrained", "oracle"]["costs"]["stored"]["encoder"]["bytes"]
    for heads, encoders in (("oracle", 3), ("routed", 4)):
        assert found["finetuned", heads]["costs"]["stored"]["encoder"]["bytes"] == encoders * one
