from __future__ import annotations

import json
from pathlib import Path

import pytest

from twin_merging import config
from twin_merging.errors import UserError
from twin_merging.tasks.local_text import LocalText
from twin_merging.tasks.splits import prepare


def source(data: Path) -> LocalText:
    return LocalText(config.Tasks(name="local_text"), config.Paths(data=str(data)))


def write_task(data: Path, labels: object, name: str = "mine", **files: str) -> Path:
    """``files``: ``train_csv="text,label\\n..."`` and so on."""
    folder = data / "text" / name
    folder.mkdir(parents=True)
    (folder / "labels.json").write_text(labels if isinstance(labels, str) else json.dumps(labels))
    for file, content in files.items():
        (folder / file.replace("_", ".")).write_text(content)
    return folder


def test_csv_with_class_names(tmp_path: Path):
    long = "x" * 200_000
    write_task(tmp_path, {"names": ["no", "yes"]}, train_csv=f'\ufefftext,label\n"a, ""b""",yes\nc,no\n{long},1\n')
    raw = source(tmp_path).load("mine")
    assert source(tmp_path).known() == ("mine",)
    assert raw.splits["train"].texts == [('a, "b"',), ("c",), (long,)]
    assert raw.splits["train"].labels == [1, 0, 1]
    assert raw.metric == "accuracy"


def test_json_lines_with_pairs_and_own_splits(tmp_path: Path):
    row = '{{"a": "{}", "b": "x", "label": {}}}\n'
    write_task(
        tmp_path,
        {"names": ["p", "q"], "columns": ["a", "b"], "metric": "matthews"},
        train_jsonl=row.format("1", 0) + "\n" + row.format("2", 1),
        validation_jsonl=row.format("3", 1),
        test_jsonl=row.format("4", 0),
    )
    task = prepare(source(tmp_path).load("mine"), config.Rows(), None, 0)
    assert task.is_pair
    assert task.metric == "matthews"
    assert task.splits["validation"].texts == [("3", "x")]
    assert task.provenance["splits"]["test"] == "test.jsonl"


def test_parquet_regression(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    folder = write_task(tmp_path, {"range": [0, 1]})
    table = pyarrow.table({"text": [f"t{i}" for i in range(10)], "label": [i / 10 for i in range(10)]})
    pyarrow.parquet.write_table(table, folder / "train.parquet")
    task = prepare(source(tmp_path).load("mine"), config.Rows(), None, 0)
    assert (task.kind, task.label_range, task.metric) == ("regression", (0.0, 1.0), "pearson")


def test_csv_regression(tmp_path: Path):
    write_task(tmp_path, {"range": [-1, 1]}, train_csv="text,label\na,0.5\nb,-1\n")
    assert source(tmp_path).load("mine").splits["train"].labels == [0.5, -1.0]


def test_identity_follows_every_file(tmp_path: Path):
    folder = write_task(tmp_path, {"names": ["a", "b"]}, train_csv="text,label\na,0\n", test_csv="text,label\nb,0\n")
    seen = {json.dumps(source(tmp_path).identity("mine"))}
    for file in ("train.csv", "test.csv", "labels.json"):
        (folder / file).write_text((folder / file).read_text() + "\n")
        seen.add(json.dumps(source(tmp_path).identity("mine")))
    assert len(seen) == 4


@pytest.mark.parametrize(
    "labels",
    [
        "{",
        "[]",
        {},
        {"names": ["a", "b"], "range": [0, 1]},
        {"names": ["a"]},
        {"names": ["a", "a"]},
        {"names": ["a", 1]},
        {"names": "ab"},
        {"range": [1, 0]},
        {"range": [0]},
        {"range": ["0", "1"]},
        {"names": ["a", "b"], "columns": ["x", "y", "z"]},
        {"names": ["a", "b"], "columns": []},
        {"names": ["a", "b"], "metric": 3},
        {"names": ["a", "b"], "column": ["text"]},
    ],
)
def test_a_wrong_labels_file_is_refused(tmp_path: Path, labels: object):
    folder = write_task(tmp_path, labels, train_csv="text,label\na,0\n")
    with pytest.raises(UserError) as raised:
        source(tmp_path).load("mine")
    assert raised.value.key == str(folder / "labels.json")
    assert '"names"' in raised.value.expected


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"train_csv": ""}, "lacks a column"),
        ({"train_csv": "txt,label\na,0\n"}, "nearest:  txt"),
        ({"train_csv": "text\na\n"}, "lacks a column"),
        ({"train_csv": "text,label\na\n"}, "row 1 has 1 fields, the header 2"),
        ({"train_jsonl": "{"}, "cannot read"),
        ({"train_jsonl": "[1]\n"}, "row 1 is not an object"),
        ({"train_jsonl": '{"text": "a", "label": 0}\n{"text": "a"}\n'}, "row 2 is not an object"),
        ({"train_parquet": "not parquet"}, "cannot read"),
        ({"train_csv": "text,label\na,0\nb,maybe\n"}, "task mine, train row 1"),
        ({"train_csv": "text,label\na,0\n,1\n"}, "task mine, train row 1"),
        ({"train_csv": "text,label\n"}, "task mine, train"),
        ({"test_csv": "text,label\na,0\n"}, "no train split"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, files: dict[str, str], says: str):
    write_task(tmp_path, {"names": ["a", "b"]}, **files)
    with pytest.raises(UserError) as raised:
        prepare(source(tmp_path).load("mine"), config.Rows(), None, 0)
    assert says in str(raised.value)


def test_unknown_task_and_missing_folder(tmp_path: Path):
    write_task(tmp_path, {"names": ["a", "b"]}, name="reviews")
    with pytest.raises(UserError) as raised:
        source(tmp_path).load("review")
    assert raised.value.nearest == "reviews"
    assert str(tmp_path / "text") in str(raised.value)
    with pytest.raises(UserError, match=r"paths\.data"):
        LocalText(config.Tasks(), config.Paths())
