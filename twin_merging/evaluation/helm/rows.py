"""A task's rows as HELM reads and words them: which it evaluates, which it may show, and what an expert may learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from twin_merging.errors import UserError
from twin_merging.evaluation.helm.files import find_task, lay_out, source_files
from twin_merging.evaluation.helm.process import quietly, register_deployment
from twin_merging.evaluation.helm.tasks import ARTICLE_WORDS
from twin_merging.tasks.generation import Example

if TYPE_CHECKING:
    from helm.benchmark.adaptation.adapters.in_context_learning_adapter import InContextLearningAdapter
    from helm.benchmark.scenarios.scenario import Instance

SUMMARY_KEY = 200  # letters and digits: copies of an article differ in spacing, and so in where they are cut


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        split: HELM's: ``train``, ``valid`` or ``test``.
        group: equal for rows that must not be on both sides of a split (see ``read_rows``).
        example: HELM's prompt without solved rows, and the right answer with what ends it.
    """

    split: str
    group: str
    example: Example


def read_rows(task: str, part: str, data: Path, benchmark: Path, words: int = ARTICLE_WORDS) -> list[Row]:
    """All rows of a task's part, in HELM's order and HELM's words.

    Groups: BBQ's rows come in fours, one context asked in two ways and with or without the sentence that settles it, and
    some fours repeat a context: all rows of a context are one group. Of an article, the first 200 letters and digits
    count, as copies of it differ in style. Elsewhere it is the question's letters and digits, without case.

    Args:
        words: of an article, at most.

    Raises:
        UserError: for an unknown task, a missing file, or rows that HELM cannot read.
    """
    lay_out(task, part, data, benchmark)
    group = _groups(task, part, data)
    with quietly():
        instances = read_instances(task, part, benchmark, words)
        adapter = _adapter(task, part)
        return [
            Row(str(instance.split), group(instance.input.text), _example(adapter, instance)) for instance in instances
        ]


def read_instances(task: str, part: str, benchmark: Path, words: int = ARTICLE_WORDS) -> list[Instance]:
    """All rows as HELM holds them, out of files that are laid out already.

    Raises:
        UserError: for rows that HELM cannot read.
    """
    from helm.benchmark.scenarios.scenario import create_scenario, get_scenario_cache_path

    spec = find_task(task).spec(part, words).scenario_spec
    # HELM shows short articles only, to save context; there is no reason to learn from short ones only
    args = {key: value for key, value in spec.args.items() if not key.startswith("sampling_")}
    scenario = create_scenario(replace(spec, args=args))
    try:
        return scenario.get_instances(get_scenario_cache_path(str(benchmark), scenario.name))
    except (KeyError, IndexError, TypeError, ValueError) as error:  # what a row of another form leads to
        raise _unreadable(task, part, error) from error


def _unreadable(task: str, part: str, error: Exception) -> UserError:
    return UserError(
        "HELM cannot read the rows", key=f"paths.data, {task} {part}".rstrip(), found=f"{type(error).__name__}: {error}",
        expected="the columns of the original files", hint=f"see {', '.join(find_task(task).files(part))}",
    )  # fmt: skip


def _adapter(task: str, part: str) -> InContextLearningAdapter:
    """HELM's adapter, for a model of unlimited context."""
    from helm.benchmark.adaptation.adapters.adapter_factory import AdapterFactory

    name = register_deployment(None)
    spec = replace(find_task(task).spec(part).adapter_spec, model=name, model_deployment=name)
    return AdapterFactory.get_adapter(spec, None)  # type: ignore[arg-type, return-value]


def _example(adapter: InContextLearningAdapter, instance: Instance) -> Example:
    """The prompt, and what follows it where HELM shows a solved row: up to what ends an answer, and that included."""
    spec = adapter.adapter_spec
    open_block = adapter.construct_example_prompt(instance, include_output=False, reference_index=None)
    block = adapter.construct_example_prompt(instance, include_output=True, reference_index=None)
    prompt = adapter.construct_prompt([], instance, include_output=False, reference_index=None).text
    answer = block.removeprefix(open_block) + spec.instance_prefix + spec.input_prefix
    (stop,) = spec.stop_sequences
    return Example(prompt, answer.partition(stop)[0] + stop)


def _groups(task: str, part: str, data: Path) -> Callable[[str], str]:
    if task == "bbq":
        contexts = _bbq_contexts(next(iter(source_files(task, part, data).values())), part)
        return lambda text: contexts[text.rpartition("\nQuestion: ")[0]]
    if find_task(task).articles:
        return lambda text: letters(text)[:SUMMARY_KEY]
    return letters


def _bbq_contexts(path: Path, category: str) -> dict[str, str]:
    """Each context -> the ambiguous context that its four share."""
    fours: dict[int, list[dict]] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for row in map(json.loads, file):
                fours.setdefault(row["example_id"] // 4, []).append(row)
        groups: dict[str, str] = {}
        for rows in fours.values():
            shared = min((row["context"] for row in rows), key=len)  # the others add a sentence to it
            for row in rows:
                groups[row["context"]] = letters(shared)
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable("bbq", category, error) from error
    return groups


def letters(text: str) -> str:
    """The letters and digits of a text, without case."""
    return "".join(filter(str.isalnum, text.casefold()))
