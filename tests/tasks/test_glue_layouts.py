"""GLUE from local copies in the layouts that they come in: all read as the same task."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from twin_merging import config
from twin_merging.errors import UserError
from twin_merging.tasks.glue import TASKS, Glue
from twin_merging.tasks.tables import find_tables

ROWS = {"train": 7, "validation": 4}


def rows(split: str) -> list[dict]:
    return [
        {"premise": f"{split} é {row}", "hypothesis": f"h {row}", "label": row % 3, "idx": row}
        for row in range(ROWS[split])
    ]


def features() -> datasets.Features:
    names = ["entailment", "neutral", "contradiction"]
    text = datasets.Value("string")
    label = datasets.ClassLabel(names=names)
    return datasets.Features({"premise": text, "hypothesis": text, "label": label, "idx": datasets.Value("int32")})


def dataset(split: str) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows(split), features=features())


def write_parquet(folder: Path) -> None:
    dataset("train").to_parquet(folder / "train.parquet")
    dataset("validation").to_parquet(folder / "validation_matched.parquet")


def write_jsonl(folder: Path) -> None:
    dataset("train").to_json(folder / "train.jsonl")
    dataset("validation").to_json(folder / "validation.jsonl")


def write_shards(folder: Path) -> None:
    for shard in range(3):
        dataset("train").shard(3, shard, contiguous=True).to_parquet(folder / f"train-{shard:05d}-of-00003.parquet")
    dataset("validation").to_parquet(folder / "validation_matched-00000-of-00001.parquet")
    dataset("train").to_parquet(folder / "validation_mismatched-00000-of-00001.parquet")


def write_saved(folder: Path) -> None:
    splits = {"train": dataset("train"), "validation_matched": dataset("validation"), "test_matched": dataset("train")}
    datasets.DatasetDict(splits).save_to_disk(
        folder, num_shards={"train": 2, "validation_matched": 1, "test_matched": 1}
    )


def write_saved_selection(folder: Path) -> None:
    """Rows chosen out of more, which are saved with the others left out."""
    doubled = datasets.concatenate_datasets([dataset("validation"), dataset("train")])
    chosen = doubled.select(range(ROWS["validation"], len(doubled)))
    datasets.DatasetDict({"train": chosen, "validation": dataset("validation")}).save_to_disk(folder)


@pytest.mark.parametrize("write", [write_parquet, write_jsonl, write_shards, write_saved, write_saved_selection])
def test_every_layout_is_the_same_task(write, tmp_path: Path):
    folder = tmp_path / "glue/mnli"
    folder.mkdir(parents=True)
    write(folder)
    source = Glue(config.Tasks(name="glue"), config.Paths(data=str(tmp_path)))
    raw = source.load("mnli")
    for split, theirs in (("train", "train"), ("test", "validation")):
        assert raw.splits[split].texts == [(row["premise"], row["hypothesis"]) for row in rows(theirs)]
        assert raw.splits[split].labels == [row["label"] for row in rows(theirs)]
    identity = source.identity("mnli")
    assert all(len(sha) == 64 for sha in identity["files"].values())
    mirrored = source.rows_to_mirror("mnli").files
    copy = tmp_path / "copy/glue/mnli"
    for name, path in mirrored.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(path.read_bytes())
    again = Glue(config.Tasks(name="glue"), config.Paths(mirror=str(tmp_path / "copy")))
    assert again.load("mnli").splits == raw.splits
    assert again.identity("mnli") == identity


def test_a_missing_shard_is_named(tmp_path: Path):
    write_shards(tmp_path)
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(UserError) as caught:
        find_tables(tmp_path, "train")
    assert caught.value.expected == "train-00001-of-00003.parquet"


@pytest.mark.parametrize("state", ["{}", '{"_data_files": [{"filename": "../validation/data-00000-of-00001.arrow"}]}'])
def test_a_damaged_list_of_files_is_named(tmp_path: Path, state: str):
    write_saved(tmp_path)
    (tmp_path / "train/state.json").write_text(state)
    with pytest.raises(UserError) as caught:
        find_tables(tmp_path, "train")
    assert caught.value.key == str(tmp_path / "train/state.json")


def test_labels_count_as_the_hub_counts_them():
    """By these names the outputs of published heads are told apart."""
    assert {name: entry.class_names for name, entry in TASKS.items()} == {
        "cola": ("unacceptable", "acceptable"),
        "sst2": ("negative", "positive"),
        "mrpc": ("not_equivalent", "equivalent"),
        "stsb": (),
        "qqp": ("not_duplicate", "duplicate"),
        "mnli": ("entailment", "neutral", "contradiction"),
        "qnli": ("entailment", "not_entailment"),
        "rte": ("entailment", "not_entailment"),
    }
