"""Which options fit a language model, and what there is for classifiers alone."""

from __future__ import annotations

import pytest

from twin_merging.compose import plan
from twin_merging.errors import UserError

LANGUAGE = ["backbone=smollm2", "tasks=generative", "finetune=causal_lora", "evaluation=native"]


def error_of(*overrides: str, multirun: bool = False) -> UserError:
    with pytest.raises(UserError) as caught:
        plan([*LANGUAGE, *overrides], multirun)
    return caught.value


def test_a_job_of_texts_is_right_as_it_is():
    (job,) = plan(LANGUAGE, False).jobs
    assert job.heads == "none"


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("tasks=glue", "tasks.name", "one of generative"),
        ("finetune=full", "finetune.name", "one of causal_full, causal_lora"),
        ("finetune=lora", "finetune.name", "one of causal_full, causal_lora"),
        ("evaluation=scores", "evaluation.name", "one of native, helm"),
        ("evaluation=task_unknown", "evaluation.name", "one of native, helm"),
    ],
)
def test_options_for_classifiers_do_not_fit_a_language_model(override, key, expected):
    error = error_of(override)
    assert (error.key, error.expected) == (key, expected)


@pytest.mark.parametrize("option", LANGUAGE[1:])
def test_options_for_texts_do_not_fit_an_encoder(option):
    with pytest.raises(UserError) as caught:
        plan(["backbone=minilm", "tasks=offline_text", option], False)
    assert caught.value.key == f"{option.partition('=')[0]}.name"
    assert "heads" in caught.value.message


@pytest.mark.parametrize("name", ["fisher", "regmean", "adamerging", "surgery", "emr"])
def test_methods_that_need_data_or_heads(name):
    error = error_of(f"merge_method={name}")
    assert (error.key, error.found) == ("merge_method.name", name)
    assert name not in error.expected.removeprefix("one of ").split(", ")
    assert {"twin", "ties", "finetuned", "iso_c"} <= set(error.expected.removeprefix("one of ").split(", "))


def test_a_shared_expert_that_needs_data():
    error = error_of("merge_method=twin", "merge_method@merge_method.shared=fisher")
    assert (error.key, error.found) == ("merge_method.shared.name", "fisher")


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["router=tfidf"], "router.name"),
        (["router.token=first"], "router.token"),
        (["router=mlp_early", "inference.lower=shared"], "inference.lower"),
        (["experts.source='x/{task}'", "experts.labels={bbq: [a, b]}"], "experts.labels"),
        (["finetune.batch_size=10", "finetune.micro_batch=4"], "finetune.micro_batch"),
        (["tasks.learn={bbq: dolly}"], "tasks.learn.bbq"),
        (["tasks.names=[]"], "tasks.names"),
        (["merge_method=finetuned", "tasks.unseen=[bbq]"], "tasks.unseen"),
        (["merge_method=expert", "merge_method.index=5"], "merge_method.index"),
        (["tasks.shots=-1"], "tasks.shots"),
        (["tasks.rows.test=3"], "tasks.rows.test"),
    ],
)
def test_keys_that_contradict_one_another(overrides, key):
    assert error_of(*overrides).key == key


def test_a_search_needs_scores_on_validation_rows():
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    overrides = ["hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "sparsifier.rank=1,2"]
    assert error_of(*overrides, multirun=True).key == "hydra/sweeper"
