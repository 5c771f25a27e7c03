"""The generative suite as a source: from a local folder, from the offline assets, and what has to be mirrored of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from end_to_end import tiny_exams
from evaluation.helm.answering_models import byte_tokenizer

from twin_merging.config import GenerativeTasks, LearningCounts, Paths
from twin_merging.errors import UserError
from twin_merging.evaluation.helm.suite import HelmSuite
from twin_merging.tasks.generative_source import Generative


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_exams.save_exams(tmp_path_factory.mktemp("exams"))


def test_rows_are_as_many_as_asked_for_and_the_first_of_all(data: Path, tmp_path: Path):
    whole = Generative(GenerativeTasks(), Paths(data=str(data))).learning("mmlu", tmp_path / "a")
    options = GenerativeTasks(rows=LearningCounts(train=20, validation=3), train_rows={"mmlu": 7})
    source = Generative(options, Paths(data=str(data)))
    few = source.learning("mmlu", tmp_path / "b")
    assert (few.train, few.validation) == (whole.train[:7], whole.validation[:3])
    assert len(source.learning("gsm8k", tmp_path / "c").train) == 20


def test_an_expert_may_learn_from_instructions(data: Path, tmp_path: Path):
    source = Generative(GenerativeTasks(learn={"mmlu": "dolly"}), Paths(data=str(data)))
    rows = source.learning("mmlu", tmp_path)
    assert {example.completion for example in rows.train} == {" A thing."}
    own = Generative(GenerativeTasks(), Paths(data=str(data)))
    assert source.learning_identity("mmlu") != own.learning_identity("mmlu")
    assert source.exam_identity("mmlu") == own.exam_identity("mmlu")


def test_rows_that_helm_generates_are_apart_and_need_neither_folder_nor_asset(tmp_path: Path):
    options = GenerativeTasks(names=["synthetic_reasoning"], parts={"synthetic_reasoning": ["variable_substitution"]})
    source = Generative(options, Paths(assets=str(tmp_path / "none")))
    assert source.assets("synthetic_reasoning") == ()
    assert source.rows_to_mirror("synthetic_reasoning") == []
    rows = source.learning("synthetic_reasoning", tmp_path / "helm")
    (exam,) = HelmSuite(source.data, tmp_path / "helm", byte_tokenizer(), context=None, shots=0, instances=5000).exams(
        "synthetic_reasoning", source.parts("synthetic_reasoning")
    )
    asked = {request.prompt for request in exam.requests}
    assert len(exam.questions) == 5000
    assert 800 < len(rows.train) + len(rows.validation) <= 1000
    assert not asked & {example.prompt for example in (*rows.train, *rows.validation)}
    assert rows.provenance["source"] == "HELM's generator"
    assert not (tmp_path / "none").exists()


def test_the_length_of_articles_is_part_of_what_they_are(data: Path):
    whole, short = (Generative(GenerativeTasks(article_words=words), Paths(data=str(data))) for words in (512, 40))
    for identity in ("learning_identity", "exam_identity"):
        assert getattr(whole, identity)("gsm8k") == getattr(short, identity)("gsm8k")
        assert getattr(whole, identity)("xsum") != getattr(short, identity)("xsum")


def test_parts_are_asked_and_learned_from_alone(data: Path, tmp_path: Path):
    source = Generative(GenerativeTasks(parts={"mmlu": ["law"]}), Paths(data=str(data)))
    prompts = [example.prompt for example in source.learning("mmlu", tmp_path).train]
    assert prompts
    assert all("about law" in prompt for prompt in prompts)
    assert source.exam_identity("mmlu")["files"].keys() == {"law"}


def test_all_parts_are_mirrored_and_a_mirror_is_read_as_the_folder(data: Path):
    options = GenerativeTasks(parts={"mmlu": ["law"]}, learn={"mmlu": "dolly"})
    rows, instructions = Generative(options, Paths(data=str(data))).rows_to_mirror("mmlu")
    assert rows.place == "generative/mmlu"
    assert rows.files.keys() == {
        f"data/{split}/{subject}_{split}.csv" for split in ("dev", "val", "test") for subject in tiny_exams.SUBJECTS
    }
    assert instructions.files.keys() == {"dolly_sample.jsonl"}
    mirrored = Generative(options, Paths(mirror=str(data)))
    assert mirrored.data == data
    assert mirrored.assets("mmlu") == ()


def test_without_a_folder_some_tasks_are_assets(tmp_path: Path):
    source = Generative(GenerativeTasks(), Paths(assets=str(tmp_path)))
    assert source.assets("bbq") == ("bigbench",)
    assert source.rows_to_mirror("bbq") == []
    with pytest.raises(UserError) as caught:
        source.assets("mmlu")
    assert (caught.value.key, "truthful_qa" in caught.value.hint) == ("paths.data", True)
