"""Whether what a job of images left to be looked at agrees with its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def check_looks(job: Path) -> list[dict[str, Any]]:
    """Check the counts of classes against the scores, and the examples against the counts; returns the examples."""
    result, tasks = (json.loads((job / name).read_text()) for name in ("results.json", "confusion.json"))
    assert set(tasks["tasks"]) == set(result["tasks"])
    for name, record in tasks["tasks"].items():
        entry = result["tasks"][name]
        assert sum(record["rows"]) == entry["rows"]
        assert sum(record["right"]) / entry["rows"] == pytest.approx(entry["raw"])
        for index, (row, rows) in enumerate(zip(record["matrix"], record["rows"], strict=True)):
            assert sum(row) + record["no_answer"][index] == rows
            assert row[index] == record["right"][index]
        assert result["heads"] == "routed" or not any(record["no_answer"])
    drawn = {path.name for path in (job / "figures").glob("confusion_*")}
    assert drawn == {f"confusion_{name}{suffix}" for name in result["tasks"] for suffix in (".png", ".svg")}
    if result["routing"] is None:
        assert not any((job / name).exists() for name in ("examples.json", "thumbnails.png", "figures/examples.png"))
        return []
    return _check_examples(job, result, tasks["tasks"])


def _check_examples(job: Path, result: dict[str, Any], tasks: dict[str, Any]) -> list[dict[str, Any]]:
    assert all((job / name).is_file() for name in ("thumbnails.png", "figures/examples.png", "figures/examples.svg"))
    about = json.loads((job / "examples.json").read_text())
    assert about["tasks"] == result["routing"]["task_names"]
    examples = about["examples"]
    assert len({(each["task"], each["row"]) for each in examples}) == len(examples) <= 64
    for each in examples:
        assert sum(each["weights"]) == pytest.approx(1, abs=1e-5)
        assert about["tasks"][each["weights"].index(max(each["weights"]))] == each["top_task"]
        assert each["right"] == (each["class"] == each["answer"])
        assert each["kind"] == "drawn" or not each["right"] or each["top_task"] != each["task"]
    for name, record in tasks.items():
        mine = [each for each in examples if each["task"] == name]
        assert [each["row"] for each in mine if each["kind"] == "drawn"] == list(range(5))
        mistakes = sum(record["rows"]) - sum(record["right"])
        sent = result["routing"]["confusion"][about["tasks"].index(name)]
        lost = sum(sent) - sent[about["tasks"].index(name)]
        assert sum(not each["right"] for each in mine) <= mistakes
        assert sum(each["top_task"] != name for each in mine) <= lost
        if max(mistakes, lost) >= 8:  # so that three are not among the first five rows
            assert sum(each["kind"] == "wrong" for each in mine) == 3
    return examples
