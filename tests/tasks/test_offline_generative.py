"""Tasks out of the registry package lie where HELM looks, row for row."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import pytest

from twin_merging.assets import asset_folder
from twin_merging.evaluation.helm.files import known_parts
from twin_merging.evaluation.helm.rows import read_rows
from twin_merging.tasks.generative import learning_rows
from twin_merging.tasks.offline_generative import offline_folder, write_layout

ROOT = "bigbench-1.0.0/bigbench/benchmark_tasks"


def articles(count: int, body: str, summary: str) -> list[dict]:
    """Rows of a summarization task."""
    return [{body: f"Article {number} of many.", summary: f"It is {number}."} for number in range(count)]


def test_members_become_helms_files(tmp_path: Path):
    bbq = {"example_id": 0, "context": "Café", "label": 2}
    question = {
        "Question": "Is it, or not?", "Category": "Myths", "True answers": ["No.", 'Not "so".'],
        "False answers": ["Yes.", "Maybe."], "Best answer": "No.",
    }  # fmt: skip
    lines = [{"source": row["a"], "true_cnd": row["b"], "idx": "x"} for row in articles(10, "a", "b")]
    write_layout(
        {
            f"{ROOT}/bbq_lite/resources/Age.json": json.dumps({"canary": "c", "examples": [bbq]}).encode(),
            f"{ROOT}/truthful_qa/questions.json": json.dumps({"examples": [question]}).encode(),
            f"{ROOT}/gem/xsum/task.json": json.dumps({"examples": articles(20, "input", "target")}).encode(),
            f"{ROOT}/factuality_of_summary/cnn_dm.json": "\n".join(["# canary", *map(json.dumps, lines)]).encode(),
        },
        tmp_path,
    )
    assert json.loads((tmp_path / "bbq/data/Age.jsonl").read_text(encoding="utf-8")) == bbq
    with (tmp_path / "truthful_qa/data/TruthfulQA.csv").open(newline="") as file:
        header, row = csv.reader(file)
    assert header[2:6] == ["Question", "Best Answer", "Correct Answers", "Incorrect Answers"]
    assert row[2:6] == ["Is it, or not?", "No.", 'No.; Not "so".', "Yes.; Maybe."]
    xsum = pickle.loads((tmp_path / "xsum/data/xsum-sampled.pk").read_bytes())
    assert {name: len(rows) for name, rows in xsum.items()} == {"train": 10, "test": 8, "validation": 2}
    assert sorted(row["summary"] for rows in xsum.values() for row in rows) == sorted(f"It is {n}." for n in range(20))
    assert xsum["train"] != sorted(xsum["train"], key=lambda row: int(row["summary"][6:-1]))
    cnn = pickle.loads((tmp_path / "cnn_dm/data/cnndm.pk").read_bytes())
    assert len(cnn["test"]) == 4
    assert cnn["train"][0].keys() == {"article", "highlights", "id"}


@pytest.mark.slow
def test_the_packages_tasks_are_read_by_helm(need_asset, tmp_path: Path):
    need_asset("bigbench")
    data = offline_folder(asset_folder())
    assert len(known_parts("bbq", data)) == 9
    counts = {}
    for task, part in (("bbq", "Race_ethnicity"), ("truthful_qa", ""), ("xsum", ""), ("cnn_dm", "")):
        rows = read_rows(task, part, data, tmp_path)
        counts[task] = {split: sum(row.split == split for row in rows) for split in ("train", "valid", "test")}
    assert counts == {
        "bbq": {"train": 3000, "valid": 0, "test": 1000},
        "truthful_qa": {"train": 59, "valid": 240, "test": 0},
        "xsum": {"train": 501, "valid": 100, "test": 400},
        "cnn_dm": {"train": 75, "valid": 15, "test": 60},
    }
    learned = learning_rows("bbq", ("Race_ethnicity", "Gender_identity"), data, tmp_path)
    assert len(learned.train) > 1000
