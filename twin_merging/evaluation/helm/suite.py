"""Exams that HELM's adapter builds, and HELM's verdict on the answers."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twin_merging.errors import UserError
from twin_merging.evaluation.exams import Exam, Marks, Question
from twin_merging.evaluation.helm.files import find_task, known_parts, lay_out
from twin_merging.evaluation.helm.process import (
    answering,
    changed_since,
    make_runner,
    quietly,
    record,
    register_deployment,
)
from twin_merging.evaluation.helm.rows import read_instances
from twin_merging.evaluation.helm.tasks import ARTICLE_WORDS
from twin_merging.tasks.generation import Request

if TYPE_CHECKING:
    from helm.benchmark.adaptation.request_state import RequestState
    from helm.benchmark.run_spec import RunSpec

log = logging.getLogger("twin_merging")


class HelmSuite:
    """HELM over local folders of data: ``data``/generative/{mmlu,truthful_qa,bbq,cnn_dm,xsum,gsm8k}, in HELM's layout, and
    over what it generates itself (synthetic_reasoning).

    Which rows are evaluated and which are shown in the prompts is HELM's choice, by its own fixed seed, so that equal
    settings give equal prompts. A prompt that does not fit into the context loses examples, from the last on, and then
    its own end, as HELM does it; how many lost something is logged, and each question says it.

    Args:
        data: the folder that holds ``generative``.
        benchmark: HELM's output folder, of this process alone: links to the data and, by suite, all that HELM writes.
        tokenizer: the model's, of transformers: prompts are cut to the context by it.
        context: of the model, in tokens: prompt and answer together; None: of any length.
        shots: solved rows in a prompt, at most; HELM's default is 5.
        instances: evaluated rows a part, at most.
        words: of an article, at most.
    """

    def __init__(
        self, data: Path, benchmark: Path, tokenizer: Any, context: int | None, shots: int = 5, instances: int = 100,
        words: int = ARTICLE_WORDS,
    ):  # fmt: skip
        self.data, self.benchmark, self.tokenizer = data, benchmark, tokenizer
        # HELM counts without the tokens that begin or end a text
        self.context = None if context is None else context - tokenizer.num_special_tokens_to_add()
        self.shots, self.instances, self.words = shots, instances, words

    def exams(self, task: str, parts: Sequence[str] = ()) -> list[Exam]:
        """The exams of a task, one a part; no parts: all whose files are there.

        Raises:
            UserError: for an unknown task, a missing file, or rows that HELM cannot read.
        """
        return [self._exam(task, part) for part in parts or known_parts(task, self.data)]

    def judge(self, exam: Exam, answers: Sequence[str], suite: str) -> Marks:
        """HELM's verdict: its executor is given the answers, its metrics score them, and its ``stats.json`` is read.

        Args:
            answers: one a question, in the exam's order.
            suite: names the folder of HELM's files in ``benchmark``/runs: another one for another model.

        Raises:
            UserError: if a file is missing, or the files or the settings have changed since the exam was made.
        """
        lay_out(exam.task, exam.part, self.data, self.benchmark)  # the exam may be of another process
        spec = self._run_spec(exam.task, exam.part)
        prompts = [question.request.prompt for question in exam.questions]
        with quietly():
            from helm.benchmark.executor import ExecutorError

            runner = make_runner(self.benchmark, suite, self.tokenizer)
            client = answering(zip(prompts, answers, strict=True))
            runner.executor.context.client = client  # type: ignore[attr-defined]
            try:
                runner.run_one(spec)
            except ExecutorError as error:  # HELM's wrapping of what the client raised
                raise error.__cause__ or error from None
        if client.left():
            raise changed_since("HELM does not ask all that was in the exam", f"{client.left()} questions fewer")
        return read_marks(self.benchmark / "runs" / suite / spec.name, exam)

    def _exam(self, task: str, part: str) -> Exam:
        known = find_task(task)
        lay_out(task, part, self.data, self.benchmark)
        spec = replace(self._run_spec(task, part), metric_specs=[])
        with quietly():
            read_instances(task, part, self.benchmark, self.words)  # says what is wrong with the rows, if anything is
            runner = make_runner(self.benchmark, "questions", self.tokenizer)
            recorded = record(runner)
            runner.run_one(spec)
        questions = tuple(_question(state, task) for state in recorded.state.request_states)
        if not questions:
            raise UserError(
                "there is no row to evaluate", key=f"paths.data, {task} {part}".rstrip(),
                expected=f"rows of HELM's split {known.split}",
            )  # fmt: skip
        exam = Exam(task, part, known.split, known.metrics, questions)
        _warn_of_lost_text(exam, self.shots)
        return exam

    def _run_spec(self, task: str, part: str) -> RunSpec:
        known = find_task(task)
        with quietly():
            spec = known.spec(part, self.words)
            deployment = register_deployment(self.context)
        if self.context is not None and spec.adapter_spec.max_tokens >= self.context:  # HELM would cut prompts for ever
            raise UserError(
                "the context is too short for an answer of this task", key=f"tasks.names, {task}", found=self.context,
                expected=f"more than {spec.adapter_spec.max_tokens} tokens",
            )  # fmt: skip
        adapter = replace(
            spec.adapter_spec, model=deployment, model_deployment=deployment, max_train_instances=self.shots,
            max_eval_instances=self.instances, eval_splits=[known.split],
        )  # fmt: skip
        return replace(spec, adapter_spec=adapter)


def _question(state: RequestState, task: str) -> Question:
    asked, instance = state.request, state.instance
    request = Request(asked.prompt, asked.max_tokens, tuple(asked.stop_sequences), asked.temperature)
    return Question(
        instance=str(instance.id),
        request=request,
        references=tuple(reference.output.text for reference in instance.references if reference.is_correct),
        choices=state.output_mapping,
        letter=instance.references[0].tags[-4] if task == "bbq" else None,  # where HELM's BBQMetric looks for it
        examples=state.num_train_instances,
        truncated=state.prompt_truncated,
    )


def _warn_of_lost_text(exam: Exam, shots: int) -> None:
    fewer = sum(question.examples < shots for question in exam.questions)
    cut = sum(question.truncated for question in exam.questions)
    if fewer or cut:
        name = f"{exam.task} {exam.part}".rstrip()
        log.warning(
            "%s: of %d prompts, %d show fewer than %d examples and %d are cut to fit into the context",
            name, len(exam.questions), fewer, shots, cut,
        )  # fmt: skip


def read_marks(folder: Path, exam: Exam) -> Marks:
    """The exam's metrics out of HELM's files; a metric that HELM counted over no answer at all is 0."""
    scores = _wanted(json.loads((folder / "stats.json").read_text(encoding="utf-8")), exam)
    values: dict[str, dict[str, float]] = {}
    for row in json.loads((folder / "per_instance_stats.json").read_text(encoding="utf-8")):
        values.setdefault(row["instance_id"], {}).update(_wanted(row["stats"], exam))
    items = {
        metric: tuple(values[question.instance][metric] for question in exam.questions)
        for metric in exam.metrics
        if all(metric in values.get(question.instance, {}) for question in exam.questions)
    }
    return Marks({metric: scores[metric] for metric in exam.metrics}, items)


def _wanted(stats: list[Mapping[str, Any]], exam: Exam) -> dict[str, float]:
    """metric -> mean, of the exam's split and of the rows as they are: HELM also gives worst cases over perturbed ones."""
    return {
        stat["name"]["name"]: stat.get("mean", 0.0)
        for stat in stats
        if stat["name"]["name"] in exam.metrics
        and stat["name"].get("split") == exam.split
        and "perturbation" not in stat["name"]
    }
