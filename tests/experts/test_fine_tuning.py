"""A run that is killed at any moment after its first checkpoint goes on from one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from experts.word_task import word_task

from twin_merging.config import FullFineTuning
from twin_merging.experts import fine_tuning
from twin_merging.experts.fine_tuning import COMPLETE, _usable_checkpoint, train

OPTIONS = FullFineTuning(epochs=3, lr=1e-2, batch_size=8, backbone_dropout=0.1)
TASK = word_task("four", 4, 2)


class Killed(Exception):
    pass


def trained(backbone, scratch: Path):
    torch.manual_seed(0)
    model = backbone.new_expert(TASK, OPTIONS.backbone_dropout)
    return model, train(backbone, model, TASK, OPTIONS, 0, scratch)


def test_a_kill_while_an_old_checkpoint_is_removed_loses_nothing(backbone, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "twin_merging")
    model, history = trained(backbone, tmp_path / "whole")

    def killed(path, *args, **kwargs):
        next(Path(path).glob("*.safetensors")).unlink()
        raise Killed

    scratch = tmp_path / "killed"
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            trained(backbone, scratch)
    newest = max(scratch.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    again, same = trained(backbone, scratch)
    assert f"  fine-tune four goes on from step {newest.name.rpartition('-')[2]}" in caplog.messages
    assert same == history
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_the_newest_and_the_best_checkpoint_are_kept(backbone, tmp_path, monkeypatch):
    scores = iter([0.5, 0.75, 0.25])  # the second epoch is best
    monkeypatch.setitem(fine_tuning.metrics, "accuracy", lambda answers, labels: next(scores))
    _, history = trained(backbone, tmp_path)
    assert history["choice"]["chosen"] == 2
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-15"]
    assert len(list(tmp_path.glob(f"checkpoint-*/{COMPLETE}"))) == 2
    newest, best = tmp_path / "checkpoint-15", tmp_path / "checkpoint-10"
    assert _usable_checkpoint(tmp_path) == str(newest)
    (newest / "optimizer.pt").write_bytes(b"half")
    assert _usable_checkpoint(tmp_path) == str(best)
    assert not newest.exists()


def test_a_checkpoint_is_of_no_use_without_the_best_one_that_it_names(backbone, tmp_path, monkeypatch):
    scores = iter([0.5, 0.75, 0.25])
    monkeypatch.setitem(fine_tuning.metrics, "accuracy", lambda answers, labels: next(scores))
    trained(backbone, tmp_path)
    next((tmp_path / "checkpoint-10").glob("*.safetensors")).unlink()
    assert _usable_checkpoint(tmp_path) is None


def test_scores_that_are_no_numbers_do_not_stop_the_training(backbone, tmp_path, monkeypatch):
    monkeypatch.setitem(fine_tuning.metrics, "accuracy", lambda answers, labels: float("nan"))
    trained(backbone, tmp_path)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-15"]
