"""``when``: what an experiment sets of an option, where that option is chosen and the command line does not set it."""

from __future__ import annotations

import re

import pytest
from omegaconf import OmegaConf

from twin_merging.compose import plan
from twin_merging.errors import UserError
from twin_merging.settings import settled

WHEN = {
    "method=a": {"method.x": 5, "method.grid": [1, 2]},
    "method.inner=b": {"method.inner.y": 6},
    "sparsifier=svd": {"sparsifier.rank": 76},
}


def config(method: str = "a", inner: str = "b", when: dict | None = None):
    return OmegaConf.create({
        "method": {"name": method, "x": 1, "grid": None, "inner": {"name": inner, "y": 2}},
        "sparsifier": {"name": "svd", "rank": None, "budget": 9},
        "when": WHEN if when is None else when,
    })  # fmt: skip


def test_it_holds_where_the_option_is_chosen_and_is_gone_afterwards():
    found = settled(config(), [])
    assert found.method == {"name": "a", "x": 5, "grid": [1, 2], "inner": {"name": "b", "y": 6}}
    assert found.sparsifier.rank == 76
    assert "when" not in found


def test_it_does_not_hold_for_another_option():
    found = settled(config("other", "c"), [])
    assert found.method == {"name": "other", "x": 1, "grid": None, "inner": {"name": "c", "y": 2}}


def test_a_key_alone_holds_where_it_is_set():
    when = {"method.grid": {"method.x": 7}, "sparsifier.budget": {"sparsifier.rank": 8}}
    found = settled(config(when=when), [])
    assert (found.method.x, found.sparsifier.rank) == (1, 8)


def test_a_key_that_is_null_is_a_condition_too():
    when = {"method.grid=null": {"method.x": 7}, "sparsifier.budget=null": {"sparsifier.rank": 8}}
    found = settled(config(when=when), [])
    assert (found.method.x, found.sparsifier.rank) == (7, None)


@pytest.mark.parametrize(
    ("conditions", "x"),
    [
        ("method=a, method.grid=null", 9),
        ("method=a,sparsifier=svd", 9),
        ("method=b, method.grid=null", 5),
        ("method=a, method.grid", 5),
    ],
)
def test_several_conditions_hold_together_and_the_last_entry_goes_first(conditions: str, x: int):
    assert settled(config(when={"method=a": {"method.x": 5}, conditions: {"method.x": 9}}), []).method.x == x


@pytest.mark.parametrize("given", ["method.x=3", "+method.x=3", "++method.x=3"])
def test_what_the_command_line_sets_stays(given: str):
    found = settled(config(), [given, "method=a"])
    assert found.method.x == 1  # as composed
    assert found.method.grid == [1, 2]


def test_any_size_of_a_sparsifier_stands_for_all_of_them():
    assert settled(config(), ["sparsifier.budget=9"]).sparsifier.rank is None


def test_the_composed_configuration_is_left_as_it_is():
    cfg = config()
    settled(cfg, [])
    assert cfg.method.x == 1
    assert "when" in cfg


@pytest.mark.parametrize(
    "when",
    [
        {"method": {"method.x": 1}},
        {"method=a": 3},
        {"method.z": {"method.x": 1}},
        {"method.z=null": {"method.x": 1}},
        {"method=a, method.z": {"method.x": 1}},
    ],
)
def test_what_is_no_condition_is_refused(when: dict):
    with pytest.raises(UserError) as caught:
        settled(config(when=when), [])
    assert caught.value.key == "when"


def job(*overrides: str):
    (run,) = plan(list(overrides), multirun=False).jobs
    return run


def test_the_glue_suite_has_the_papers_settings():
    run = job("+exp=glue_roberta")
    assert (run.backbone.pretrained, run.backbone.max_length) == ("FacebookAI/roberta-base", 128)
    assert (run.finetune.epochs, run.finetune.lr, run.finetune.batch_size) == (10, 1e-5, 64)
    assert (run.finetune.warmup, run.finetune.weight_decay) == (0.06, 0.01)
    assert (run.merge_method.name, run.merge_method.shared.scaling, run.sparsifier.rank) == ("twin", 0.29, 76)
    assert (run.router.lr, run.router.epochs, run.router.rows, run.router.layer) == (5e-4, 10, 1000, -1)
    assert list(run.experts.reference) == run.tasks.names


def test_the_shared_experts_scaling_is_task_arithmetics_alone():
    assert job("+exp=glue_roberta", "merge_method@merge_method.shared=ties").merge_method.shared.scaling == 1.0
    assert job("+exp=glue_roberta", "merge_method.shared.scaling=0.5").merge_method.shared.scaling == 0.5
    assert job("+exp=glue_roberta", "merge_method=ties").merge_method.grid


def test_the_authors_suite_differs_by_named_options():
    run = job("+exp=glue_roberta_authors")
    assert (run.parameters.exclude, run.evaluation.excluded, run.tasks.order) == ([".*bias.*"], "task", "source")
    assert (run.tasks.rows.test, run.sparsifier.rank, run.sparsifier.fraction) == (1000, None, 0.1)
    router = run.router
    assert (router.source, router.rows, router.epochs, router.batch_size) == ("train", 5500, 50, 1024)
    assert router.selection == "last"
    ties = job("+exp=glue_roberta_authors", "merge_method=ties").merge_method
    assert (ties.density, ties.scaling, ties.grid) == (0.1, 0.7, None)
    assert job("+exp=glue_roberta_authors", "merge_method=task_arithmetic").merge_method.scaling == 0.29


def test_every_job_of_a_sweep_has_its_own():
    jobs = plan(["+exp=glue_roberta", "merge_method=ties,task_arithmetic,twin", "sparsifier.rank=1,16"], True).jobs
    assert [run.sparsifier.rank for run in jobs] == [1, 16] * 3
    assert [getattr(run.merge_method, "grid", None) is not None for run in jobs] == [True] * 4 + [False] * 2


def jobs_of(*overrides: str) -> list:
    return plan(list(overrides), multirun=True).jobs


QWEN = [
    "transformer.h.0.attn.c_attn",
    "transformer.h.0.attn.c_proj",
    *(f"transformer.h.0.mlp.{x}" for x in ("w1", "w2", "c_proj")),
]
QWEN25 = [
    *(f"model.layers.0.self_attn.{x}_proj" for x in "qkvo"), *(f"model.layers.0.mlp.{x}_proj" for x in ("gate", "up", "down")),
]  # fmt: skip


@pytest.mark.parametrize("exp", ["generative_qwen", "generative_qwen72b"])
def test_the_generative_suites_have_the_papers_settings(exp):
    jobs = jobs_of(f"+exp={exp}", "paths.data=DIR")
    assert {run.merge_method.name for run in jobs} >= {"pretrained", "finetuned", "task_arithmetic", "twin"}
    tuning, tasks = jobs[0].finetune, jobs[0].tasks
    assert (tuning.rank, tuning.alpha, tuning.dropout, tuning.lr) == (32, 16, 0.05, 2e-4)
    assert (tuning.batch_size, tuning.epochs) == (128, 3)
    for name in (*QWEN, *QWEN25):
        assert re.fullmatch(tuning.targets, name)
    assert not any(re.fullmatch(tuning.targets, name) for name in ("lm_head", "transformer.wte", "model.embed_tokens"))
    assert tasks.shots == 5
    assert jobs[-1].sparsifier.rank == 16
    assert not jobs[0].backbone.trust_remote_code
    if exp == "generative_qwen":
        assert (tasks.names, tasks.learn) == (["mmlu", "truthful_qa", "bbq", "cnn_dm"], {"mmlu": "dolly"})
        assert jobs[0].backbone.pretrained == "Qwen/Qwen-14B"
        assert tuning.quantize == "none"
    else:
        assert (tasks.names, tuning.quantize) == (["truthful_qa", "bbq"], "nf4")
        assert (jobs[0].backbone.pretrained, jobs[0].backbone.device_map) == ("Qwen/Qwen-72B", "auto")
    arithmetic = next(run.merge_method for run in jobs if run.merge_method.name == "task_arithmetic")
    assert arithmetic.scaling == 0.3


def test_the_small_suite_takes_four_tasks_with_data_and_without():
    offline, local = (jobs_of("+exp=generative_smollm2", *given)[0].tasks for given in ([], ["paths.data=DIR"]))
    assert offline.names == ["bbq", "truthful_qa", "xsum", "synthetic_reasoning"]
    assert local.names == ["mmlu", "bbq", "truthful_qa", "synthetic_reasoning"]
    assert (offline.parts["bbq"], local.parts["bbq"]) == (["Gender_identity"], ["Age"])
    assert (offline.learn, local.learn) == (None, {"mmlu": "dolly"})
    own = jobs_of("+exp=generative_smollm2", "paths.data=DIR", "tasks.names=[xsum]", "tasks.parts.bbq=[Religion]")[0]
    assert (own.tasks.names, own.tasks.parts["bbq"]) == (["xsum"], ["Religion"])


def test_the_small_suite_sweeps_twins_ranks_unless_the_sparsifier_is_chosen():
    def sizes(*given: str) -> list:
        jobs = jobs_of("+exp=generative_smollm2", *given)
        return [(run.merge_method.name, getattr(run.sparsifier, "rank", None)) for run in jobs][-2:]

    assert sizes() == [("twin", 1), ("twin", 16)]
    assert sizes("sparsifier.rank=4") == [("wudi", 4), ("twin", 4)]
    assert sizes("sparsifier=none") == [("wudi", None), ("twin", None)]
    assert sizes("sparsifier.fraction=0.5") == [("wudi", None), ("twin", None)]
    assert sizes("merge_method=ties,twin") == [("ties", 16), ("twin", 16)]  # after both at rank 1


@pytest.mark.parametrize("size", ["14b", "72b"])
def test_todays_qwen_is_one_word_away(size):
    run = jobs_of("+exp=generative_qwen", "paths.data=DIR", f"backbone=qwen2_5_{size}")[0]
    assert run.backbone.pretrained == f"Qwen/Qwen2.5-{size.upper()}"


def test_llama_is_fine_tuned_as_a_whole():
    jobs = jobs_of("+exp=generative_llama7b", "paths.data=DIR")
    assert (jobs[0].finetune.name, jobs[0].tasks.names) == ("causal_full", ["gsm8k", "truthful_qa"])
    assert {run.merge_method.name for run in jobs} == {"pretrained", "finetuned", "task_arithmetic", "twin"}


def test_random_weights_of_clip_are_a_dry_run_of_every_method():
    jobs = plan(["+exp=vision_clip", "backbone.pretrained=null"], multirun=False).jobs
    assert {job.merge_method.name for job in jobs} >= {"adamerging", "surgery", "wudi", "twin", "emr", "multitask"}
    assert {job.tasks.rows.train for job in jobs} == {32}
    steps = {job.merge_method.name: job.merge_method.steps for job in jobs if hasattr(job.merge_method, "steps")}
    assert max(steps["adamerging"], steps["wudi"]) <= 5
    (surgery,) = (job.merge_method for job in jobs if job.merge_method.name == "surgery")
    assert surgery.merge.steps <= 5
    (own,) = plan(
        [
            "+exp=vision_clip",
            "backbone.pretrained=null",
            "tasks.names=[mnist,dtd]",
            "merge_method=ties",
            "finetune.epochs=3",
        ],
        multirun=False,
    ).jobs
    assert (own.tasks.names, own.finetune.epochs, own.tasks.rows.test) == (["mnist", "dtd"], 3, 16)
    (whole,) = plan(["+exp=vision_clip", "merge_method=adamerging"], multirun=False).jobs
    assert (len(whole.tasks.names), whole.merge_method.steps, whole.tasks.rows.train) == (8, 500, None)
