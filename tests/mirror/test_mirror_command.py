"""scripts/mirror.py: what an experiment needs is listed, fetched, resumed and verified; run.py's check names what is missing."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock
from safetensors.torch import save_file
from torch import ones

from twin_merging.checksums import sha256_of
from twin_merging.compose import plan
from twin_merging.errors import UserError
from twin_merging.mirror import fetch as fetching
from twin_merging.mirror.cli import main
from twin_merging.mirror.folder import find_model, read_manifest
from twin_merging.mirror.needs import check_mirrored, mirror_command, needed


def save_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(b"pickle")
    save_file({"w": ones(3)}, folder / "model.safetensors")
    return folder


def save_rows(data: Path, task: str) -> None:
    folder = data / "glue" / task
    folder.mkdir(parents=True)
    row = json.dumps({"sentence": task, "label": 0})
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text(row)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """An experiment of which all is on this machine."""
    save_model(tmp_path / "base")
    for task in ("cola", "sst2"):
        save_model(tmp_path / "experts" / task)
        save_rows(tmp_path / "data", task)
    return [
        "+exp=glue_roberta", "tasks.names=[cola,sst2]", f"backbone.pretrained={tmp_path / 'base'}",
        f"experts.source='{tmp_path / 'experts'}/{{task}}'", f"paths.data={tmp_path / 'data'}",
    ]  # fmt: skip


def jobs(*overrides: str) -> list:
    return plan(list(overrides), multirun=False).jobs


def test_the_glue_suite_needs_the_hubs_model_and_rows():
    pieces = {piece.key: piece for piece in needed(jobs("+exp=glue_roberta", "experts.sources={rte: me/rte@v1}"))}
    base = pieces.pop("model FacebookAI/roberta-base")
    assert base.hub == ("FacebookAI/roberta-base", "model")
    assert base.weights
    assert not {"*.bin", "*.py", "*.pt"} & set(base.patterns)
    assert pieces.pop("model me/rte@v1").revision == "v1"
    tasks = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"]
    assert [piece.place for piece in pieces.values()] == [f"glue/{task}" for task in tasks]
    assert pieces["rows glue/mnli"].patterns == ("mnli/train-*.parquet", "mnli/validation_matched-*.parquet")
    assert all(piece.revision and piece.hub == ("nyu-mll/glue", "dataset") for piece in pieces.values())


def test_jobs_of_a_sweep_need_what_any_of_them_needs_once():
    runs = plan(["+exp=glue_roberta", "merge_method=ties,twin", "tasks.names=[cola],[cola,rte]"], multirun=True).jobs
    assert [piece.key for piece in needed(runs)] == [
        "model FacebookAI/roberta-base", "rows glue/cola", "rows glue/rte"
    ]  # fmt: skip


def test_offline_suites_need_registry_packages():
    keys = [piece.key for piece in needed(jobs("+exp=quickstart", "tasks.names=[bbc_topics]"))]
    assert keys[0] == "asset minilm"
    assert len(keys) == 2
    assert keys[1].startswith("asset ")


def test_a_tag_of_open_clip_needs_its_repository_of_the_hub_and_random_weights_need_none():
    given = ["backbone=clip_vit_b16", "tasks=vision", "tasks.names=[digits]"]
    pieces = {piece.key: piece for piece in needed(jobs(*given))}
    clip = pieces["model timm/vit_base_patch16_clip_224.openai"]
    assert clip.patterns == ("open_clip_config.json", "open_clip_model.safetensors")
    named = "openai/clip-vit-base-patch32"  # whose files are transformers'
    (model,) = [piece for piece in needed(jobs(*given, f"backbone.pretrained={named}")) if piece.weights]
    assert {*clip.patterns, "config.json", "model.safetensors", "preprocessor_config.json"} < {*model.patterns}
    assert set(pieces) - {clip.key} == {piece.key for piece in needed(jobs(*given, "backbone.pretrained=null"))}


def test_all_is_copied_hashed_and_verified(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "mirror"
    assert main([*arguments, f"out={out}", "--list"]) == 0
    assert "to fetch" in capsys.readouterr().out
    assert not out.exists()
    assert main([*arguments, f"out={out}"]) == 0
    shown = capsys.readouterr().out
    assert f"paths.mirror={out}" in shown
    assert "paths.data=" not in shown  # the rows are in the mirror, and the folder they came from is elsewhere
    pieces = read_manifest(out)
    assert len(pieces) == 5
    for entry in pieces.values():
        for name, (sha256, size) in entry.files.items():
            assert sha256_of(out / name) == sha256
            assert (out / name).stat().st_size == size
    assert not list(out.rglob("*.bin"))
    assert not list((out / ".unfinished").glob("*"))
    found = find_model(out, str(tmp_path / "base"), None)
    assert found is not None
    assert (found[0] / "model.safetensors").is_file()
    assert main(["verify", f"out={out}"]) == 0
    assert "verified" in capsys.readouterr().out
    (out / "glue/cola/train.jsonl").write_text('{"sentence": "cola", "label": 1}')
    assert main(["verify", f"out={out}"]) == 2
    assert "glue/cola/train.jsonl" in capsys.readouterr().err


def test_a_killed_fetch_goes_on(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    out, copied, copy2 = tmp_path / "mirror", [], shutil.copy2

    def stop_at_the_fifth(source, target):
        copied.append(Path(source))
        if len(copied) == 5:
            Path(target).write_bytes(b"half")
            raise KeyboardInterrupt
        return copy2(source, target)

    monkeypatch.setattr(fetching.shutil, "copy2", stop_at_the_fifth)
    assert main([*arguments, f"out={out}"]) == 130
    assert "interrupted: what was fetched is kept" in capsys.readouterr().err
    first, copied[:] = copied[:4], []
    assert len(read_manifest(out)) == 1  # the base's three files
    monkeypatch.setattr(
        fetching.shutil, "copy2", lambda source, target: (copied.append(Path(source)), copy2(source, target))
    )
    assert main([*arguments, f"out={out}"]) == 0
    assert not set(first) & set(copied)
    assert main(["verify", f"out={out}"]) == 0


def test_a_kill_before_it_was_listed_costs_nothing(arguments: list[str], tmp_path: Path):
    out = tmp_path / "mirror"
    assert main([*arguments, f"out={out}"]) == 0
    before = read_manifest(out)
    (out / "mirror.json").unlink()
    assert main([*arguments, f"out={out}"]) == 0
    assert read_manifest(out) == before
    assert main(["verify", f"out={out}"]) == 0


def test_without_a_hub_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["+exp=glue_roberta", f"out={tmp_path / 'mirror'}"]) == 2
    shown = capsys.readouterr().err
    assert "roberta-base" in shown
    assert "Traceback" not in shown
    assert "hub" in shown


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["+exp=glue_roberta"], "out=DIR"),
        (["+exp=glue_roberta", "out=x", "--lsit"], "--lsit"),
        (["+exp=glue_robertaa", "out=x"], "glue_roberta"),
        (["+exp=glue_roberta", "out=x", "paths.mirror=y"], "paths.mirror"),
        (["verify", "out=there_is_none"], "no mirror"),
    ],
)
def test_bad_arguments(given: list[str], says: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(given) == 2
    assert says in capsys.readouterr().err


def test_weights_that_are_not_safetensors_are_refused(arguments: list[str], tmp_path: Path, capsys):
    (tmp_path / "experts/sst2/model.safetensors").unlink()
    assert main([*arguments, f"out={tmp_path / 'mirror'}"]) == 2
    assert "no safetensors" in capsys.readouterr().err


def test_what_a_mirror_lacks_is_named_with_the_command(tmp_path: Path):
    overrides = ["+exp=glue_roberta", "tasks.names=[cola]", f"paths.mirror={tmp_path}", "hydra.run.dir=x", "cache=off"]
    with pytest.raises(UserError) as caught:
        check_mirrored(jobs(*overrides), overrides)
    assert "model FacebookAI/roberta-base" in str(caught.value.expected)
    assert "rows glue/cola" in str(caught.value.expected)
    command = f"python scripts/mirror.py +exp=glue_roberta 'tasks.names=[cola]' cache=off out={tmp_path}"
    assert command in str(caught.value.hint)
    assert mirror_command(overrides, str(tmp_path)) == command


def test_nothing_is_missing_of_what_was_mirrored(arguments: list[str], tmp_path: Path):
    out = tmp_path / "mirror"
    assert main([*arguments, f"out={out}"]) == 0
    used = [text for text in arguments if not text.startswith("paths.data")] + [f"paths.mirror={out}"]
    shutil.rmtree(tmp_path / "experts")
    check_mirrored(jobs(*used), used)
    (missing,) = [text for text in ["tasks.names=[rte]"]]
    with pytest.raises(UserError, match=r"rows glue/rte") as caught:
        check_mirrored(jobs(*used, missing), used)
    assert "cola" not in str(caught.value.expected)


def test_a_folder_that_is_no_mirror_is_refused_though_all_is_on_this_machine(tmp_path: Path, arguments: list[str]):
    used = [*arguments, f"paths.mirror={tmp_path / 'none'}"]
    with pytest.raises(UserError, match="no mirror"):
        check_mirrored(plan(used, multirun=False).jobs, used)


def test_one_process_at_a_time_fetches_and_the_next_has_nothing_left_to_do(arguments: list[str], tmp_path: Path):
    out = tmp_path / "mirror"
    out.mkdir()
    lock = FileLock(out / ".lock")
    with ThreadPoolExecutor() as pool:
        with lock:
            waiting = pool.submit(fetching.fetch, needed(jobs(*arguments)), out)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=1)
            assert read_manifest(out) == {}
        waiting.result(timeout=60)
    assert len(read_manifest(out)) == 5


def test_revisions_are_fetched_as_they_are_named():
    (base, *_) = needed(jobs("+exp=glue_roberta", "backbone.revision=abc"))
    assert (base.key, base.revision) == ("model FacebookAI/roberta-base@abc", "abc")
