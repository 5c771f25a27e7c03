from __future__ import annotations

from pathlib import Path

import pytest

from twin_merging import config
from twin_merging.errors import UserError
from twin_merging.tasks.base import SPLITS
from twin_merging.tasks.glue import TASKS, Glue
from twin_merging.tasks.splits import check_disjoint, prepare


def glue(data: Path | None) -> Glue:
    return Glue(config.Tasks(name="glue"), config.Paths(data=str(data) if data else None))


@pytest.mark.parametrize("name", TASKS)
def test_real_rows_load_and_split(shared_data: Path, name: str):
    source = glue(shared_data)
    raw = source.load(name)
    task = prepare(raw, config.Rows(), None, 0)
    assert set(task.splits["test"].texts) <= set(raw.splits["test"].texts)
    assert set(task.splits["validation"].texts) <= set(raw.splits["train"].texts)
    train, validation = len(task.splits["train"]), len(task.splits["validation"])
    assert validation == round(0.1 * (train + validation))
    assert task.is_pair == (name not in ("cola", "sst2"))
    assert task.num_labels == {"stsb": 1, "mnli": 3}.get(name, 2)
    if raw.class_names:
        assert all(set(task.splits[split].labels) == set(range(task.num_labels)) for split in SPLITS)
    check_disjoint(task)
    assert prepare(source.load(name), config.Rows(), None, 0) == task


def test_metrics_are_the_benchmarks():
    assert {name: entry.metric for name, entry in TASKS.items()} == {
        "cola": "matthews",
        "sst2": "accuracy",
        "mrpc": "accuracy_f1",
        "stsb": "pearson_spearman",
        "qqp": "accuracy_f1",
        "mnli": "accuracy",
        "qnli": "accuracy",
        "rte": "accuracy",
    }


def write_rows(folder: Path, stem: str, lines: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_json_lines_matched_validation_and_empty_texts(tmp_path: Path):
    folder = tmp_path / "glue/mnli"
    row = '{{"premise": "{}", "hypothesis": "h", "label": {}, "idx": 0}}'
    write_rows(folder, "train", [row.format("a", 0), row.format(" ", 1), row.format("c", 2), row.format("d", 2)])
    write_rows(folder, "validation_matched", [row.format("e", 1)])
    raw = glue(tmp_path).load("mnli")
    assert raw.splits["train"].texts == [("a", "h"), ("c", "h"), ("d", "h")]
    assert raw.splits["test"].labels == [1]
    assert raw.provenance["empty_rows_left_out"] == {"train": 1, "test": 0}


def test_identity_follows_the_files(tmp_path: Path):
    row = '{"sentence": "a", "label": 0}'
    write_rows(tmp_path / "glue/cola", "validation", [row])
    path = write_rows(tmp_path / "glue/cola", "train", [row])
    before = glue(tmp_path).identity("cola")
    assert glue(tmp_path).identity("cola") == before
    path.write_text(row.replace("a", "b"))
    assert glue(tmp_path).identity("cola") != before
    assert "revision" in glue(None).identity("cola")


def test_a_missing_mirror_says_which_file(tmp_path: Path):
    with pytest.raises(UserError) as raised:
        glue(tmp_path).load("rte")
    assert raised.value.key == "paths.data"
    assert str(raised.value.found) == str(tmp_path / "glue/rte")


def test_an_unreachable_hub_points_to_the_mirror(monkeypatch: pytest.MonkeyPatch):
    import datasets

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match="no route") as raised:
        glue(None).load("rte")
    assert raised.value.key == "paths.data"
    assert "glue/rte/train.parquet" in raised.value.expected


def test_the_hub_rows_become_the_same_task(monkeypatch: pytest.MonkeyPatch, shared_data: Path):
    import datasets

    def from_files(name: str, task: str, revision: str):
        files = {split: str(shared_data / f"glue/{task}/{split}.parquet") for split in ("train", "validation")}
        return {split: datasets.Dataset.from_parquet(path) for split, path in files.items()}

    monkeypatch.setattr(datasets, "load_dataset", from_files)
    assert glue(None).load("rte").splits == glue(shared_data).load("rte").splits


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(UserError) as raised:
        glue(None).load("sst-2")
    assert raised.value.nearest == "sst2"
