"""RoBERTa's own code path, from its byte-level tokenizer to the table: ``+exp=glue_roberta`` on random weights and a few rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import results, succeed
from tiny_glue import save_glue, save_roberta
from transformers import AutoTokenizer

from twin_merging.config import merge_methods
from twin_merging.tasks.glue import TASKS

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BRIEF = (
    "finetune.epochs=1", "finetune.batch_size=16", "tasks.limit=16", "backbone.max_length=32", "sparsifier.rank=4",
    "precision=fp32", "device=cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_glue(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="module")
def roberta(glue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_roberta(tmp_path_factory.mktemp("models") / "roberta", glue, **SMALL)


def test_the_tokenizer_is_robertas(roberta: Path):
    tokenizer = AutoTokenizer.from_pretrained(roberta)
    assert "roberta" in type(tokenizer).__name__.lower()
    ids = tokenizer("café", " über")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[0] == "<s>"
    assert [tokenizer.convert_ids_to_tokens(ids).count(token) for token in ("<s>", "</s>", "<unk>")] == [1, 3, 0]
    assert "token_type_ids" not in tokenizer("a", "b")


def test_every_method_runs_on_it(roberta: Path, glue: Path, tmp_path: Path):
    methods = [*sorted(set(merge_methods) - {"adamerging", "surgery", "fisher", "expert"}), "fisher_quick"]
    names = ["cola", "stsb", "mnli"]
    succeed(
        "-m", "+exp=glue_roberta", f"backbone.pretrained={roberta}", f"paths.data={glue}", f"tasks.names=[{','.join(names)}]",
        f"merge_method={','.join(methods)}", *BRIEF, "hydra.sweep.dir=sweep", folder=tmp_path,
    )  # fmt: skip
    found = results(tmp_path / "sweep")
    assert len(found) == len(methods)
    for result in found.values():
        assert [task["metric"] for task in result["tasks"].values()] == ["matthews", "pearson_spearman", "accuracy"]
        assert set(result["experts"]) == set(names)
    assert {choice["what"] for choice in found["ties", "oracle"]["choices"]} >= {"scaling"}


def test_the_authors_suite_runs_and_says_what_leaks(roberta: Path, glue: Path, tmp_path: Path):
    outcome = succeed(
        "+exp=glue_roberta_authors", f"backbone.pretrained={roberta}", f"paths.data={glue}", "tasks.names=[sst2,rte]",
        *BRIEF, "sparsifier.fraction=null", "router.epochs=2", "router.rows=16", "hydra.run.dir=run", folder=tmp_path,
    )  # fmt: skip
    assert outcome.lines("warning", "leaks the task")
    result = results(tmp_path / "run")["twin", "oracle"]
    assert result["routing"]["trained_on"] == "train"
    assert "leaks the task" in (tmp_path / "run/table.md").read_text()


@pytest.mark.slow
def test_at_the_base_models_real_size(glue: Path, tmp_path: Path):
    model = save_roberta(tmp_path / "roberta", glue)
    succeed(
        "-m", "+exp=glue_roberta", f"backbone.pretrained={model}", f"paths.data={glue}", "tasks.names=[mrpc,stsb]",
        "merge_method=task_arithmetic,twin", "finetune.batch_size=8", *BRIEF, "hydra.sweep.dir=sweep", folder=tmp_path,
    )  # fmt: skip
    found = results(tmp_path / "sweep")
    assert set(found) == {("task_arithmetic", "oracle"), ("twin", "oracle")}
    assert found["twin", "oracle"]["bytes_stored"] > 340e6  # twelve layers of 768 in float32


def test_all_eight_tasks_compose(glue: Path):
    assert len(TASKS) == 8
    assert {path.name for path in (glue / "glue").iterdir()} == set(TASKS)
