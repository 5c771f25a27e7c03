"""RoBERTa's own code path, from its byte-level tokenizer to the table: ``+exp=glue_roberta`` on random weights and a few rows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from math import isfinite
from pathlib import Path

import pytest
from commands import clear_merged, results, succeed
from tiny_glue import save_glue, save_roberta
from transformers import AutoTokenizer

from twin_merging.config import merge_methods
from twin_merging.pipeline.cache import Cache
from twin_merging.pipeline.stages import Stages
from twin_merging.reproducing.cells import plan_item
from twin_merging.reproducing.item import known_items, load_item

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BRIEF = (
    "finetune.epochs=1", "finetune.batch_size=16", "tasks.limit=16", "backbone.max_length=32", "sparsifier.rank=4",
    "precision=fp32", "device=cpu",
)  # fmt: skip
QUICK = {name: f"{name}_quick" for name in ("adamerging", "surgery", "fisher")}


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
    """Those that minimize an entropy have no regression among their tasks."""
    methods = {name: ("cola", "stsb", "mnli") for name in merge_methods}
    methods |= {"adamerging": ("cola", "mnli"), "surgery": ("cola", "mnli")}
    for number, names in enumerate(sorted({*methods.values()})):
        chosen = [QUICK.get(name, name) for name, tasks in methods.items() if tasks == names]
        succeed(
            "-m", "+exp=glue_roberta", f"backbone.pretrained={roberta}", f"paths.data={glue}", f"tasks.names=[{','.join(names)}]",
            f"merge_method={','.join(chosen)}", *BRIEF, f"hydra.sweep.dir=sweep/{number}", folder=tmp_path,
        )  # fmt: skip
    found = {method: result for (method, _), result in results(tmp_path / "sweep").items()}
    assert set(found) == set(merge_methods)
    metrics = {"cola": "matthews", "stsb": "pearson_spearman", "mnli": "accuracy"}
    for method, names in methods.items():
        assert {name: task["metric"] for name, task in found[method]["tasks"].items()} == {
            name: metrics[name] for name in names
        }
        assert set(found[method]["experts"]) == set(names)
    assert {choice["what"] for choice in found["ties"]["choices"]} >= {"scaling"}


def test_the_authors_suite_runs_and_says_what_leaks(roberta: Path, glue: Path, tmp_path: Path):
    outcome = succeed(
        "+exp=glue_roberta_authors", f"backbone.pretrained={roberta}", f"paths.data={glue}", "tasks.names=[sst2,rte]",
        *BRIEF, "sparsifier.fraction=null", "router.epochs=2", "router.rows=16", "hydra.run.dir=run", folder=tmp_path,
    )  # fmt: skip
    assert outcome.lines("warning", "leaks the task")
    result = results(tmp_path / "run")["twin", "oracle"]
    assert result["routing"]["trained_on"] == "train"
    assert "leaks the task" in (tmp_path / "run/table.md").read_text()


@pytest.fixture
def real(glue: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder with a model of the base model's real size, and with the gigabytes that experts and merges of it take."""
    save_roberta(tmp_path / "roberta", glue)
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_every_method_at_the_base_models_real_size(real: Path, glue: Path):
    """Of what is iterated a few steps, and of what solves or decomposes in float64 one layer's matrices, for time."""
    layer = "merge_method.matrices=[.*layer.0.*]"
    singular = {
        "regmean": ["parameters.include=[.*layer.0.*]"],
        "tsv_merge,iso_c": [layer], "wudi": [layer, "merge_method.steps=2"],
        "adamerging": ["merge_method.steps=2"], "surgery": ["merge_method.steps=2", "merge_method.merge.steps=2"],
    }  # fmt: skip
    plain = [QUICK.get(name, name) for name in sorted(set(merge_methods) - set(",".join(singular).split(",")))]
    sweeps: list[tuple[str, list[str]]] = [
        (",".join(plain[start : start + 4]), []) for start in range(0, len(plain), 4)
    ]
    for number, (methods, options) in enumerate([*sweeps, *singular.items()]):
        succeed(
            "-m", "+exp=glue_roberta", f"backbone.pretrained={real / 'roberta'}", f"paths.data={glue}", "tasks.names=[mrpc,cola]",
            f"merge_method={methods}", *options, *BRIEF, "finetune.batch_size=8", "evaluation.timing=4", f"hydra.sweep.dir=sweep/{number}",
            folder=real,
        )  # fmt: skip
        clear_merged(real / "outputs/cache")
    found = results(real / "sweep")
    assert set(found) == {(name, "oracle") for name in merge_methods}
    for result in found.values():
        assert all(isfinite(task["raw"]) for task in result["tasks"].values())
    assert found["twin", "oracle"]["bytes_stored"] > 340e6  # twelve layers of 768 in float32
    assert found["finetuned", "oracle"]["bytes_stored"] > 2 * 340e6
    assert (real / "sweep/0/table.md").is_file()


@pytest.mark.slow
def test_the_cells_of_every_table_and_figure_compose(roberta: Path, glue: Path, tmp_path: Path):
    of_roberta = [name for name in known_items() if load_item(name).suite == "glue_roberta"]
    assert len(of_roberta) == 12
    for name in of_roberta:
        plan = plan_item(load_item(name), None, [f"backbone.pretrained={roberta}", f"paths.data={glue}"], None)
        assert len(plan.cells) == load_item(name).cells, name
        cache = Cache(tmp_path / "cache", "off")
        assert all(
            Stages(cell.run, cache).result.key for cell in plan.cells
        )  # each finds its tasks, model and components
