"""HELM and our own scores give every real row the same mark."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from answering_models import answers_of_every_kind, byte_tokenizer, complete, tiny_llama
from hypothesis import example, given, settings
from hypothesis import strategies as st

from twin_merging.errors import UserError
from twin_merging.evaluation.answers import exact_match, final_number_exact_match, grade, quasi_exact_match
from twin_merging.evaluation.exams import Exam, answer_all, task_score
from twin_merging.evaluation.helm.process import quietly
from twin_merging.evaluation.helm.suite import HelmSuite, read_marks

PARTS = {
    "mmlu": ("virology", "formal_logic", "professional_psychology"),
    "truthful_qa": (),
    "bbq": ("Age", "Sexual_orientation"),
    "cnn_dm": (),
    "gsm8k": (),
    "synthetic_reasoning": ("variable_substitution", "pattern_match"),
}


@pytest.fixture(scope="module")
def suite(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> HelmSuite:
    """Many rows, so that every kind of answer meets every kind of row."""
    folder = tmp_path_factory.mktemp("helm")
    return HelmSuite(shared_data, folder, byte_tokenizer(), context=100_000, shots=5, instances=60)


def small(suite: HelmSuite, **changes) -> HelmSuite:
    """The same suite with other settings."""
    settings = {"context": 100_000, "shots": 5, "instances": 6, "data": suite.data, **changes}
    return HelmSuite(benchmark=suite.benchmark, tokenizer=suite.tokenizer, **settings)


def check_agreement(suite: HelmSuite, exam: Exam, answers: list[str], tolerance: float) -> set[float | None]:
    """Judge both ways and compare score by score and row by row; the marks of the main metric that occurred."""
    helm, native = suite.judge(exam, answers, "agreement"), grade(exam, answers)
    assert helm.scores.keys() == native.scores.keys() == set(exam.metrics)
    for metric in exam.metrics:
        assert helm.scores[metric] == pytest.approx(native.scores[metric], abs=1e-9), metric
    assert helm.items.keys() == set(exam.metrics) - {"bbq_accuracy"}  # of that, HELM gives the mean alone
    for metric, marks in helm.items.items():
        if tolerance:
            assert marks == pytest.approx(native.items[metric], abs=tolerance), metric
        else:
            assert marks == native.items[metric], metric
    return set(native.items[exam.metrics[0]])


@pytest.mark.parametrize(
    ("task", "tolerance"),
    [("mmlu", 0), ("truthful_qa", 0), ("bbq", 0), ("gsm8k", 0), ("cnn_dm", 1e-6), ("synthetic_reasoning", 0)],
)
def test_native_scores_agree_with_helm_on_every_item(suite: HelmSuite, task: str, tolerance: float):
    for number, exam in enumerate(suite.exams(task, PARTS[task])):
        answers = answers_of_every_kind(exam, seed=number)
        marks = check_agreement(suite, exam, answers, tolerance)
        assert {0.0, 1.0} <= marks
        if tolerance:
            assert len(marks) > 5  # ROUGE between 0 and 1


def test_native_scores_agree_with_helm_on_a_models_answers(suite: HelmSuite):
    model = tiny_llama(suite.tokenizer)
    few = small(suite, shots=0, instances=12)
    for task in ("mmlu", "gsm8k"):
        exam = few.exams(task, PARTS[task][:1])[0]
        answers = complete(model, suite.tokenizer, exam.requests)
        assert len(set(answers)) > 1
        check_agreement(few, exam, answers, 0)


@given(
    st.lists(st.sampled_from(["a", "The", "an", " ", "\n", "1", "20", ",", ".", "-", "é", "('x')", "٣"]), max_size=9)
)
@example(["1", " ", "20"])
@example(["The", " ", "é", "."])
@settings(deadline=None, max_examples=300)
def test_the_definitions_are_helms(pieces: list[str]):
    with quietly():
        from helm.benchmark.metrics import evaluate_reference_metrics as helm
    text = "".join(pieces)
    for other in (
        text.strip(),
        text.upper(),
        text.replace(".", ""),
        "20",
        "1,20.",
        "the é",
        " ".join(reversed(pieces)),
    ):
        for gold, answer in ((text, other), (other, text)):
            assert exact_match(gold, answer) == helm.exact_match(gold, answer)
            assert quasi_exact_match(gold, answer) == helm.quasi_exact_match(gold, answer)
            assert final_number_exact_match(gold, answer) == helm.final_number_exact_match(gold, answer)


def test_other_splits_and_perturbed_rows_are_not_read(suite: HelmSuite):
    few = small(suite)
    exam = few.exams("mmlu", ("virology",))[0]
    answers = answers_of_every_kind(exam, seed=3)
    before = few.judge(exam, answers, "read")
    (path,) = (few.benchmark / "runs/read").rglob("stats.json")
    stats = json.loads(path.read_text())
    others = [stat for stat in stats if "perturbation" in stat["name"]]
    assert {"exact_match"} <= {stat["name"]["name"] for stat in others}
    for stat in others:
        stat["mean"] = 0.123
    elsewhere = [{**stat, "name": {"name": "exact_match", "split": "valid"}, "mean": 0.456} for stat in stats[:1]]
    path.write_text(json.dumps([*stats, *elsewhere]))
    assert read_marks(path.parent, exam) == before


def test_one_call_answers_all_exams(suite: HelmSuite):
    exams = small(suite).exams("mmlu", ("virology", "formal_logic"))
    calls: list[int] = []

    def complete(requests) -> list[str]:
        calls.append(len(requests))
        return [request.prompt[-50:] for request in requests]

    answers = answer_all(exams, complete)
    assert calls == [12]
    assert answers == [[question.request.prompt[-50:] for question in exam.questions] for exam in exams]


def test_one_changed_answer_changes_one_mark(suite: HelmSuite):
    few = small(suite)
    exam = few.exams("bbq", ("Age",))[0]
    right = [str(question.letter) for question in exam.questions]
    wrong = ["C" if right[2] != "C" else "A"]
    before, after = few.judge(exam, right, "a"), few.judge(exam, [*right[:2], *wrong, *right[3:]], "b")
    assert before.items["exact_match"] == (1.0,) * 6
    assert after.items["exact_match"] == (1.0, 1.0, 0.0, 1.0, 1.0, 1.0)
    assert after.scores["bbq_accuracy"] == pytest.approx(5 / 6)
    again = few.judge(exam, right, "b")  # the same prompts, another model: nothing is remembered
    assert again == before
    assert task_score([before, after], "exact_match") == pytest.approx(11 / 12)


def test_bbq_accuracy_leaves_empty_answers_out_and_exact_match_does_not(suite: HelmSuite):
    few = small(suite)
    exam = few.exams("bbq", ("Age",))[0]
    right = [str(question.letter) for question in exam.questions]
    for answers, accuracy in (([*right[:3], "", "", ""], 1.0), ([""] * 6, 0.0)):
        marks = few.judge(exam, answers, "empty")
        assert marks.scores["bbq_accuracy"] == grade(exam, answers).scores["bbq_accuracy"] == accuracy
        assert marks.scores["exact_match"] == sum(map(bool, answers)) / 6


def test_exams_are_what_helm_asks(suite: HelmSuite):
    exam = suite.exams("mmlu", ("virology",))[0]
    assert (exam.split, len(exam.questions)) == ("test", 60)
    for question in exam.questions:
        prompt = question.request.prompt
        assert prompt.startswith(
            "The following are multiple choice questions (with answers) about virology.\n\nQuestion: "
        )
        assert prompt.endswith("\nAnswer:")
        assert prompt.count("Question: ") == 6
        assert question.examples == 5
        assert not question.truncated
        assert (question.request.max_new_tokens, question.request.temperature) == (1, 0.0)
        assert set(question.references) <= set((question.choices or {}).values())
    summary = suite.exams("cnn_dm")[0].questions[0].request
    assert summary.prompt.startswith("###\nArticle: ")
    assert summary.prompt.endswith("Summarize the above article in 3 sentences.")
    assert (summary.max_new_tokens, summary.stop, summary.temperature) == (128, ("###",), 0.3)
    assert all(len(q.request.prompt.split()) <= 512 + 9 for q in suite.exams("cnn_dm")[0].questions)


def test_exams_are_of_the_test_rows_alone(suite: HelmSuite):
    rows = (suite.data / "generative/mmlu/data/test/virology_test.csv").read_text()
    first_lines = [
        q.request.prompt.split("Question: ")[-1].split("\n")[0] for q in suite.exams("mmlu", ("virology",))[0].questions
    ]
    assert all(line[:30].replace('"', "") in rows.replace('"', "") for line in first_lines)


def test_equal_settings_give_equal_exams_whatever_the_global_seed(suite: HelmSuite):
    first = suite.exams("bbq", ("Age",))[0]
    random.seed(99)
    np.random.seed(99)
    drawn = random.Random(99).random(), np.random.RandomState(99).rand()
    again = suite.exams("bbq", ("Age",))[0]
    assert again.fingerprint() == first.fingerprint()
    assert (random.random(), np.random.rand()) == drawn  # HELM's seeding does not reach the caller
    other = replace(first, questions=first.questions[1:])
    assert other.fingerprint() != first.fingerprint()


def test_shots_and_instances_are_as_set(suite: HelmSuite):
    exam = small(suite, shots=2, instances=7).exams("truthful_qa")[0]
    assert Counter(question.examples for question in exam.questions) == {2: 7}
    assert all(question.request.prompt.count("Question: ") == 3 for question in exam.questions)


def test_prompts_that_do_not_fit_lose_examples_and_then_their_end(suite: HelmSuite, caplog):
    tokens = len(suite.tokenizer.encode("")) + 1  # beginning, and one token of the answer
    narrow = small(suite, context=700).exams("mmlu", ("virology",))[0]
    assert all(len(suite.tokenizer.encode(q.request.prompt)) + 1 <= 700 for q in narrow.questions)
    assert min(question.examples for question in narrow.questions) < 5
    assert "show fewer than 5 examples" in caplog.text
    tiny = small(suite, context=60 + tokens).exams("mmlu", ("virology",))[0]
    assert all(question.truncated and question.examples == 0 for question in tiny.questions)
    assert "6 are cut" in caplog.text
    with pytest.raises(UserError, match="too short for an answer"):
        small(suite, context=100).exams("cnn_dm")


def test_without_a_limit_no_prompt_is_cut(suite: HelmSuite):
    few = small(suite, context=None)
    exam = few.exams("mmlu", ("virology",))[0]
    assert exam == small(suite).exams("mmlu", ("virology",))[0]
    check_agreement(few, exam, answers_of_every_kind(exam), 0)


def test_helms_files_are_kept_by_suite(suite: HelmSuite):
    few = small(suite)
    exam = few.exams("truthful_qa")[0]
    few.judge(exam, ["A"] * 6, "merged")
    written = {path.name for path in (few.benchmark / "runs/merged").rglob("*.json")}
    assert {"run_spec.json", "scenario_state.json", "stats.json", "per_instance_stats.json"} <= written
    with pytest.raises(ValueError, match="zip"):
        few.judge(exam, ["A"] * 5, "merged")


def test_files_that_changed_since_the_exam_are_refused(suite: HelmSuite):
    few = small(suite)
    exam = few.exams("truthful_qa")[0]
    altered = replace(exam.questions[0].request, prompt="something else")
    changed = replace(exam, questions=(replace(exam.questions[0], request=altered), *exam.questions[1:]))
    with pytest.raises(UserError, match="HELM asks what was not in the exam"):
        few.judge(changed, ["A"] * 6, "changed")
    with pytest.raises(UserError, match="HELM asks what was not in the exam"):
        small(suite, shots=4).judge(exam, ["A"] * 6, "changed")
    with pytest.raises(UserError, match="1 questions fewer"):
        small(suite, instances=5).judge(exam, ["A"] * 6, "changed")
