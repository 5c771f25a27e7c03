"""Rows to learn from: HELM's words, right answers, and nothing of what is evaluated."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from twin_merging.errors import UserError
from twin_merging.evaluation.helm.suite import HelmSuite
from twin_merging.tasks.generative import learning_identity, learning_rows


def write(path: Path, content: str) -> Path:
    """A file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def write_mmlu(data: Path, subject: str, rows: dict[str, list[str]]) -> None:
    """A subject's three files; the right answer is always B."""
    for split in ("dev", "val", "test"):
        lines = "".join(f'"{question}",one,two,three,four,B\n' for question in rows[split])
        write(data / f"generative/mmlu/data/{split}/{subject}_{split}.csv", lines)


def all_test_prompts(data: Path, benchmark: Path, task: str, parts: tuple[str, ...] = ()) -> list[str]:
    """HELM's prompt, without solved rows, of every row that it could evaluate."""
    alphabet = {letter: index for index, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    letters = Tokenizer(models.BPE(alphabet, []))  # each byte a token: HELM reads prompts back from tokens
    letters.pre_tokenizer, letters.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    suite = HelmSuite(
        data, benchmark, PreTrainedTokenizerFast(tokenizer_object=letters), context=10**6, shots=0, instances=10**6
    )
    return [request.prompt for exam in suite.exams(task, parts) for request in exam.requests]


@pytest.mark.parametrize(
    ("source", "parts", "least"),
    [("mmlu", ("virology", "nutrition"), 50), ("truthful_qa", (), 150), ("bbq", ("Age",), 900), ("gsm8k", (), 7000)],
)
def test_no_prompt_is_both_learned_and_evaluated(shared_data: Path, tmp_path: Path, source, parts, least):
    rows = learning_rows(source, parts, shared_data, tmp_path)
    learned = [example.prompt for example in rows.train + rows.validation]
    assert len(learned) == len(set(learned)) >= least
    evaluated = all_test_prompts(shared_data, tmp_path, source, parts)
    assert learned[0][:3] == evaluated[0][:3]  # worded alike
    assert not set(learned) & set(evaluated)
    assert rows.provenance["rows"]["train"] == len(rows.train)


def test_mmlu_learns_no_question_of_any_subjects_test(shared_data: Path, tmp_path: Path):
    learned = learning_rows("mmlu", ("virology", "nutrition"), shared_data, tmp_path)
    questions = {}
    for path in sorted((shared_data / "generative/mmlu/data").glob("*/*.csv")):
        with path.open(newline="") as file:
            for question, *choices, letter in csv.reader(file):
                questions.setdefault(path.parent.name, {})[question] = (choices, letter)
    for example in learned.train + learned.validation:
        asked = example.prompt.split("Question: ", 1)[1].rsplit("\nD. ", 1)[0].split("\nA. ")[0]
        assert asked not in questions["test"]
        _, letter = {**questions["dev"], **questions["val"]}[asked]
        assert example.completion == f" {letter}\n"


def test_bbq_learns_no_context_of_which_a_row_is_evaluated(shared_data: Path, tmp_path: Path):
    with (shared_data / "generative/bbq/data/Age.jsonl").open() as file:
        rows = [json.loads(line) for line in file]

    def wording(row: dict) -> str:
        choices = "".join(f"{letter}. {row[f'ans{index}']}\n" for index, letter in enumerate("ABC"))
        return f"Passage: {row['context']}\nQuestion: {row['question']}\n{choices}Answer:"

    by_prompt = {wording(row): row for row in rows}
    evaluated = [
        by_prompt[prompt.split("\n\n")[1]] for prompt in all_test_prompts(shared_data, tmp_path, "bbq", ("Age",))
    ]
    learning = learning_rows("bbq", ("Age",), shared_data, tmp_path)
    train, validation = (
        [(by_prompt[example.prompt.split("\n\n")[1]], example.completion) for example in part]
        for part in (learning.train, learning.validation)
    )
    assert all(completion == f" {'ABC'[row['label']]}\n" for row, completion in train)
    fours = [
        {row["example_id"] // 4 for row in part}
        for part in (evaluated, *([row for row, _ in p] for p in (train, validation)))
    ]
    assert len(evaluated) == 1000
    assert sum(map(len, fours)) == len(set.union(*fours))


def test_gsm8k_and_summaries_end_where_an_answer_ends(shared_data: Path, tmp_path: Path):
    for example in learning_rows("gsm8k", (), shared_data, tmp_path).validation:
        assert example.prompt.startswith("Q: ")
        assert example.prompt.endswith("\nA:")
        assert example.completion.startswith(" ")
        assert example.completion.endswith(".\n\n")
        assert "The answer is " in example.completion
    summaries = learning_rows("cnn_dm", (), shared_data, tmp_path)
    assert len(summaries.train) == 180  # articles of any length, though HELM shows short ones only
    for example in summaries.train:
        assert example.prompt.endswith("\n\nSummarize the above article in 3 sentences.")
        assert example.completion.startswith("\n")
        assert example.completion.endswith("###")


def test_a_question_of_the_test_is_left_out_whatever_its_subject_and_spelling(tmp_path: Path):
    data = tmp_path / "data"
    write_mmlu(
        data,
        "virology",
        {"dev": ["What is  it?", "Who?", "Why"], "val": ["When?", "how; many", "Who?"], "test": ["what is it"]},
    )
    write_mmlu(data, "nutrition", {"dev": ["x"], "val": ["y"], "test": ["How many?"]})
    rows = learning_rows("mmlu", ("virology",), data, tmp_path / "helm")
    asked = sorted(e.prompt.split("Question: ")[1].split("\n")[0] for e in rows.train + rows.validation)
    assert asked == ["When?", "Who?", "Why"]
    assert rows.provenance["rows"] == {"found": 6, "left_out": 2, "train": 2, "validation": 1}
    assert rows.provenance["parts"] == ["virology"]
    assert all(len(digest) == 64 for digest in rows.provenance["files"].values())


def test_bbq_contexts_stay_whole(tmp_path: Path):
    """1,010 rows: HELM evaluates 1,000 of them, and of the ten others most share their context with one of those."""
    rows = []
    for number in range(1010):
        four, kind = divmod(number, 4)
        settled = f"Two met {four}." + (" The old one forgot." if kind % 2 else "")
        rows.append({
            "example_id": number, "question_polarity": "neg" if kind < 2 else "nonneg", "context_condition": "ambig",
            "answer_info": {"ans0": ["old"], "ans1": ["young"], "ans2": ["Unknown"]}, "context": settled,
            "additional_metadata": {"stereotyped_groups": ["old"]}, "question": f"Who {kind // 2}?",
            "ans0": "old", "ans1": "young", "ans2": "Unknown", "label": 2,
        })  # fmt: skip
    data = tmp_path / "data"
    write(data / "generative/bbq/data/Age.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="too few rows are left") as error:
        learning_rows("bbq", (), data, tmp_path / "helm")
    assert error.value.found == "0 of 10 rows"


def test_rows_depend_on_the_seed_alone(shared_data: Path, tmp_path: Path):
    first = learning_rows("truthful_qa", (), shared_data, tmp_path)
    again = learning_rows("truthful_qa", (), shared_data, tmp_path)
    other = learning_rows("truthful_qa", (), shared_data, tmp_path, seed=1)
    assert (first.train, first.validation) == (again.train, again.validation)
    assert set(first.validation) != set(other.validation)
    assert set(first.train + first.validation) == set(other.train + other.validation)


def test_dolly_asks_like_helm_and_no_question_of_mmlus_test(tmp_path: Path):
    data = tmp_path / "data"
    write_mmlu(data, "virology", {"dev": ["a"], "val": ["b"], "test": ["Name a virus."]})
    rows = [
        {"instruction": "Who is it?", "context": "It is I.\n", "response": " I "},
        {"instruction": "name a virus", "context": "", "response": "flu"},
        {"instruction": "Say yes", "context": "", "response": "yes"},
    ]
    write(data / "generative/dolly/databricks-dolly-15k.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    learned = learning_rows("dolly", (), data, tmp_path / "helm")
    texts = {example.prompt: example.completion for example in learned.train + learned.validation}
    assert texts == {"Passage: It is I.\nQuestion: Who is it?\nAnswer:": " I", "Question: Say yes\nAnswer:": " yes"}


def test_identity_changes_with_every_file_that_matters(tmp_path: Path):
    data = tmp_path / "data"
    for subject in ("virology", "nutrition"):
        write_mmlu(data, subject, {"dev": ["a"], "val": ["b"], "test": ["c"]})
    dolly = write(data / "generative/dolly/dolly_sample.jsonl", "{}")
    first = learning_identity("mmlu", ("virology",), data), learning_identity("dolly", (), data)
    dolly.write_text('{"a": 1}')
    assert learning_identity("mmlu", ("virology",), data) == first[0]
    assert learning_identity("dolly", (), data) != first[1]
    write_mmlu(data, "nutrition", {"dev": ["a"], "val": ["b"], "test": ["other"]})  # its test questions are left out
    assert learning_identity("mmlu", ("virology",), data) != first[0]
    assert learning_identity("mmlu", ("nutrition",), data) != learning_identity("mmlu", ("virology",), data)


def test_what_is_missing_is_named(tmp_path: Path):
    data = tmp_path / "data"
    write_mmlu(data, "virology", {"dev": ["a"], "val": ["b"], "test": ["c"]})
    with pytest.raises(UserError, match="the file of dolly is missing") as error:
        learning_rows("dolly", (), data, tmp_path / "helm")
    assert error.value.expected == str(data / "generative/dolly/databricks-dolly-15k.jsonl")
    write(data / "generative/dolly/dolly_sample.jsonl", '{"instruction": "a", "response": "b"}\n')
    with pytest.raises(UserError, match="lacks a column") as error:
        learning_rows("dolly", (), data, tmp_path / "helm")
    assert error.value.expected == "context"
    with pytest.raises(UserError, match="unknown source"):
        learning_rows("doly", (), data, tmp_path / "helm")
    with pytest.raises(UserError, match="a file of truthful_qa is missing"):
        learning_rows("truthful_qa", (), data, tmp_path / "helm")
    lacking = write(data / "generative/bbq/data/Age.jsonl", '{"context": "a"}\n')
    with pytest.raises(UserError, match="example_id") as error:
        learning_rows("bbq", ("Age",), data, tmp_path / "helm")
    assert lacking.name in str(error.value.hint) or "data/Age" in str(error.value.hint)
