"""HELM's files: found in several layouts, named where they are missing, refused where they are not plain data."""

from __future__ import annotations

import json
import os
import pickle
import socket
import urllib.request
from pathlib import Path

import pytest
from answering_models import byte_tokenizer

from twin_merging.errors import UserError
from twin_merging.evaluation.helm.files import check_plain, identity, known_parts, source_files
from twin_merging.evaluation.helm.rows import read_rows
from twin_merging.evaluation.helm.suite import HelmSuite

SUMMARY = {"article": "One two three. Four five six.", "highlights": "One two.", "id": "0"}
BBQ_ROW = {
    "example_id": 0, "question_index": "1", "question_polarity": "neg", "context_condition": "ambig", "category": "Age",
    "answer_info": {"ans0": ["old", "old"], "ans1": ["young", "nonOld"], "ans2": ["Unknown", "unknown"]},
    "additional_metadata": {"stereotyped_groups": ["old"]}, "context": "Two met.", "question": "Who forgot?",
    "ans0": "The old one", "ans1": "The young one", "ans2": "Unknown", "label": 2,
}  # fmt: skip


def write(path: Path, content: str | bytes) -> Path:
    """A file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_mmlu(data: Path, subject: str = "virology", row: str = "What?,one,two,three,four,B\n") -> Path:
    """The three files of a subject."""
    for split in ("dev", "val", "test"):
        path = write(data / f"generative/mmlu/data/{split}/{subject}_{split}.csv", row)
    return path


def suite_of(data: Path, tmp_path: Path) -> HelmSuite:
    """HELM over these files."""
    return HelmSuite(data, tmp_path / "benchmark", byte_tokenizer(), context=5000, instances=3)


def test_tiny_files_are_enough_and_nothing_is_fetched(tmp_path: Path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something was fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(urllib.request, "urlretrieve", refuse)
    data = tmp_path / "data"
    write_mmlu(data)
    write(data / "generative/bbq/data/Age", json.dumps(BBQ_ROW) + "\n")
    write(data / "generative/xsum/data/xsum-sampled.pk", pickle.dumps(
        {split: [{"document": SUMMARY["article"], "summary": SUMMARY["highlights"]}] for split in ("train", "validation", "test")}
    ))  # fmt: skip
    suite = suite_of(data, tmp_path)
    (mmlu,) = suite.exams("mmlu")
    assert mmlu.part == "virology"
    assert suite.judge(mmlu, ["B"], "own").scores == {"exact_match": 1.0, "quasi_exact_match": 1.0}
    elsewhere = HelmSuite(data, tmp_path / "of another process", suite.tokenizer, context=5000, instances=3)
    assert elsewhere.judge(mmlu, ["A"], "own").scores["exact_match"] == 0.0
    (bbq,) = suite.exams("bbq")
    assert bbq.part == "Age"
    assert suite.judge(bbq, ["C"], "own").scores["bbq_accuracy"] == 1.0
    (xsum,) = suite.exams("xsum")
    assert xsum.questions[0].request.max_new_tokens == 64
    assert suite.judge(xsum, ["One two"], "own").scores["rouge_2"] == 1.0


def test_rows_that_helm_generates_need_no_file(tmp_path: Path):
    suite = suite_of(tmp_path / "nothing", tmp_path)
    exams = suite.exams("synthetic_reasoning")
    assert [exam.part for exam in exams] == ["induction", "pattern_match", "variable_substitution"]
    assert len({exam.fingerprint() for exam in exams}) == 3
    for exam in exams:
        assert len(exam.questions) == 3
        assert (
            suite.judge(exam, [question.references[0] for question in exam.questions], "own").scores["exact_match"]
            == 1.0
        )
    with pytest.raises(UserError) as error:
        suite.exams("synthetic_reasoning", ("pattern_matching",))
    assert (error.value.key, error.value.nearest) == ("tasks.parts.synthetic_reasoning", "pattern_match")


def test_articles_are_cut_to_so_many_words(tmp_path: Path):
    article, summary = " ".join(map(str, range(700))), "1 2."
    rows = [
        {"article": f"{split} {article}", "highlights": summary, "id": "0"} for split in ("train", "validation", "test")
    ]
    splits = dict(zip(("train", "validation", "test"), ([row] for row in rows), strict=True))
    write(tmp_path / "generative/cnn_dm/data/cnndm.pk", pickle.dumps(splits))
    for words in (512, 40):
        suite = HelmSuite(tmp_path, tmp_path / "helm", byte_tokenizer(), context=None, shots=0, words=words)
        (exam,) = suite.exams("cnn_dm")
        asked = exam.questions[0].request.prompt
        assert f"test {' '.join(map(str, range(words - 1)))}\n" in asked
        assert suite.judge(exam, [summary], "own").scores["rouge_2"] == 1.0
        learned = {row.split: row.example.prompt for row in read_rows("cnn_dm", "", tmp_path, tmp_path / "helm", words)}
        assert f"train {' '.join(map(str, range(words - 1)))}\n" in learned["train"]


def test_a_missing_file_is_named_with_its_place(tmp_path: Path):
    data = tmp_path / "data"
    last = write_mmlu(data)
    last.unlink()
    with pytest.raises(UserError) as error:
        suite_of(data, tmp_path).exams("mmlu", ("virology",))
    assert error.value.expected == str(last)
    assert error.value.key == "paths.data"
    with pytest.raises(UserError, match="a file of gsm8k is missing"):
        suite_of(data, tmp_path).exams("gsm8k")
    assert not list((tmp_path / "benchmark").rglob("*.csv"))


def test_a_misspelt_part_or_task_gets_the_nearest(tmp_path: Path):
    data = tmp_path / "data"
    write_mmlu(data)
    with pytest.raises(UserError) as error:
        source_files("mmlu", "virolgy", data)
    assert error.value.nearest == "virology"
    with pytest.raises(UserError, match="unknown generative task") as error:
        source_files("mmul", "virology", data)
    assert error.value.nearest == "mmlu"
    assert known_parts("mmlu", data) == ("virology",)
    with pytest.raises(UserError, match="no files of this task"):
        known_parts("bbq", data)


@pytest.mark.parametrize("row", ["What?,one,two,three,four,F\n", "What?\n", "\n"])
def test_rows_of_another_form_are_refused(tmp_path: Path, row: str):
    data = tmp_path / "data"
    write_mmlu(data, row=row)
    with pytest.raises(UserError, match="HELM cannot read the rows") as error:
        suite_of(data, tmp_path).exams("mmlu")
    assert "virology_test.csv" in str(error.value.hint)


def test_a_lacking_column_and_an_empty_file_are_refused(tmp_path: Path):
    data = tmp_path / "data"
    lacking = {key: value for key, value in BBQ_ROW.items() if key != "label"}
    path = write(data / "generative/bbq/data/Age.jsonl", json.dumps(lacking) + "\n")
    with pytest.raises(UserError, match="label"):
        suite_of(data, tmp_path).exams("bbq")
    path.write_text("")
    with pytest.raises(UserError, match="no row to evaluate"):
        suite_of(data, tmp_path).exams("bbq")


def test_a_pickle_with_more_than_plain_data_is_refused_unrun(tmp_path: Path):
    class Command:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    data = tmp_path / "data"
    path = write(data / "generative/cnn_dm/data/cnndm.pk", pickle.dumps({"train": [Command()]}))
    with pytest.raises(UserError, match="only plain data"):
        suite_of(data, tmp_path).exams("cnn_dm")
    assert not (tmp_path / "ran").exists()
    path.write_bytes(b"no pickle")
    with pytest.raises(UserError, match="refused"):
        check_plain(path)


def test_identity_is_of_the_content(tmp_path: Path):
    data, copy = tmp_path / "data", tmp_path / "copy"
    path = write_mmlu(data)
    write_mmlu(copy)
    write_mmlu(data, "nutrition")
    first = identity("mmlu", ("virology",), data)
    assert first == identity("mmlu", (), copy)
    assert list(identity("mmlu", (), data)["files"]) == ["nutrition", "virology"]
    path.write_text("Who?,one,two,three,four,B\n")
    assert identity("mmlu", ("virology",), data) != first


def test_changed_data_is_read_anew(tmp_path: Path):
    data = tmp_path / "data"
    write_mmlu(data)
    suite = suite_of(data, tmp_path)
    before = suite.exams("mmlu")[0]
    write_mmlu(data, row="What else?,one,two,three,four,C\n")
    after = suite.exams("mmlu")[0]
    assert before.questions[0].references == ("two",)
    assert after.questions[0].references == ("three",)
