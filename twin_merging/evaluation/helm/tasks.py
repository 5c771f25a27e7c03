"""Which of HELM's runs a task is: its run spec, its files, its main split and its scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helm.benchmark.run_spec import RunSpec

CHOICE_METRICS = ("exact_match", "quasi_exact_match")
ROUGE_METRICS = ("rouge_2", "rouge_1", "rouge_l")
ARTICLE_WORDS = 512  # HELM cuts articles to so many
SUMMARIES = "helm.benchmark.scenarios.summarization_scenario.SummarizationScenario"


@dataclass(frozen=True)
class HelmTask:
    """One task of the generative suite, as HELM knows it.

    Args:
        scenario: HELM's name, and so the folder where HELM looks for its files.
        split: the split that is evaluated.
        metrics: the scores that are read, the main one first.
        run_spec: part -> HELM's run spec.
        files: part -> where HELM looks for a file -> where it may lie in the task's own folder, the first that exists.
        parts: a folder, and the names of its files as a pattern with the part as its group; None: it has no parts.
        generated: the parts of a task whose rows HELM makes itself, from a seed of its own: it has no files.
        articles: its rows are articles, which are cut.
    """

    scenario: str
    split: str
    metrics: tuple[str, ...]
    run_spec: Callable[[str], RunSpec]
    files: Callable[[str], dict[str, tuple[str, ...]]]
    parts: tuple[str, str] | None = None
    generated: tuple[str, ...] = ()
    articles: bool = False

    def spec(self, part: str, words: int = ARTICLE_WORDS) -> RunSpec:
        """HELM's run spec of a part, with articles cut to so many words."""
        found = self.run_spec(part)
        if not self.articles:
            return found
        args = {**found.scenario_spec.args, "doc_max_length": words}
        return replace(found, scenario_spec=replace(found.scenario_spec, args=args))


def _mmlu(subject: str) -> RunSpec:
    from helm.benchmark.run_specs.lite_run_specs import get_mmlu_spec

    return get_mmlu_spec(subject)


def _truthful_qa(_: str) -> RunSpec:
    from helm.benchmark.run_specs.classic_run_specs import get_truthful_qa_spec

    return get_truthful_qa_spec("mc_single")


def _bbq(category: str) -> RunSpec:
    from helm.benchmark.run_specs.classic_run_specs import get_bbq_spec

    return get_bbq_spec(category)


def _gsm8k(_: str) -> RunSpec:
    from helm.benchmark.run_specs.lite_run_specs import get_gsm_spec

    return get_gsm_spec()


def _synthetic_reasoning(mode: str) -> RunSpec:
    """HELM's, without its toxicity metrics, which ask a service."""
    from helm.benchmark.metrics.common_metric_specs import get_exact_match_metric_specs
    from helm.benchmark.run_specs.classic_run_specs import get_synthetic_reasoning_spec

    return replace(get_synthetic_reasoning_spec(mode), metric_specs=get_exact_match_metric_specs())


def _summaries(name: str, dataset: str, sentences: int, max_tokens: int) -> Callable[[str], RunSpec]:
    """A run spec in place of HELM's own, whose metrics (SummaC, BERTScore) need packages that no longer install.

    Its scenario and adapter have HELM's values: articles cut to 512 words, examples of 50 to 150 words, temperature 0.3.
    """

    def run_spec(_: str) -> RunSpec:
        from helm.benchmark.adaptation.common_adapter_specs import get_summarization_adapter_spec
        from helm.benchmark.metrics.common_metric_specs import get_basic_metric_specs
        from helm.benchmark.run_spec import RunSpec
        from helm.benchmark.scenarios.scenario import ScenarioSpec

        lengths = {"sampling_min_length": 50, "sampling_max_length": 150, "doc_max_length": ARTICLE_WORDS}
        return RunSpec(
            name=f"{name}:temperature=0.3",
            scenario_spec=ScenarioSpec(class_name=SUMMARIES, args={"dataset_name": dataset, **lengths}),
            adapter_spec=get_summarization_adapter_spec(num_sents=sentences, max_tokens=max_tokens, temperature=0.3),
            metric_specs=get_basic_metric_specs(sorted(ROUGE_METRICS)),
            groups=[name],
        )

    return run_spec


def _mmlu_files(subject: str) -> dict[str, tuple[str, ...]]:
    return {path: (path,) for path in (f"data/{split}/{subject}_{split}.csv" for split in ("dev", "val", "test"))}


def _one_file(path: str) -> Callable[[str], dict[str, tuple[str, ...]]]:
    return lambda _: {path: (path,)}


TASKS = {
    "mmlu": HelmTask("mmlu", "test", CHOICE_METRICS, _mmlu, _mmlu_files, ("data/test", r"(.+)_test\.csv")),
    "truthful_qa": HelmTask(
        "truthful_qa", "valid", CHOICE_METRICS, _truthful_qa, _one_file("data/TruthfulQA.csv")
    ),
    # exact match first, as in the paper: bbq_accuracy leaves out empty answers, so that silence is no mistake
    "bbq": HelmTask(
        "bbq", "test", (*CHOICE_METRICS, "bbq_accuracy"), _bbq,
        lambda category: {f"data/{category}": (f"data/{category}.jsonl", f"data/{category}")}, ("data", r"(\w+)(?:\.jsonl)?"),
    ),
    "cnn_dm": HelmTask(
        "summarization", "test", ROUGE_METRICS, _summaries("summarization_cnndm", "cnn-dm", 3, 128),
        _one_file("data/cnndm.pk"), articles=True,
    ),
    "xsum": HelmTask(
        "summarization", "test", ROUGE_METRICS, _summaries("summarization_xsum_sampled", "xsum-sampled", 1, 64),
        _one_file("data/xsum-sampled.pk"), articles=True,
    ),
    "gsm8k": HelmTask(
        "gsm", "test", ("final_number_exact_match",), _gsm8k,
        lambda _: {f"gsm_data_{split}": (f"data/{split}.jsonl", f"gsm_data_{split}") for split in ("train", "test")},
    ),
    # answers are rules and their symbols, which quasi_exact_match does not see
    "synthetic_reasoning": HelmTask(
        "synthetic_reasoning", "test", CHOICE_METRICS, _synthetic_reasoning, lambda _: {},
        generated=("induction", "pattern_match", "variable_substitution"),
    ),
}  # fmt: skip
