"""A tiny model with three tasks, and one finished sweep over it that the tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import tiny_exams
from backbones.tiny_language import save_language
from commands import finish, start
from mounts import mounted
from sweeps import SWEEP, Finished


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT."""
    return tiny.save_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``paths.data`` with three tasks. Tests that damage a task make their own."""
    return tiny.save_tasks(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def small(bert: Path, data: Path) -> list[str]:
    """The arguments of a job that takes seconds."""
    return [
        f"backbone.pretrained={bert}", "backbone.max_length=20", "tasks=local_text", f"tasks.names=[{','.join(tiny.TASKS)}]",
        f"paths.data={data}", "finetune.epochs=8", "finetune.lr=5e-3", "finetune.batch_size=16", "precision=fp32",
        "router.epochs=20", "router.lr=5e-3", "sparsifier.rank=4", "device=cpu",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def finished(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """All five methods with both heads, from an empty cache."""
    folder = tmp_path_factory.mktemp("finished")
    outcome = finish(start(*SWEEP, *small, "hydra.sweep.dir=sweep", folder=folder))
    assert outcome.code == 0, outcome.text
    return Finished(outcome, folder / "sweep", folder / "outputs/cache")


@pytest.fixture(scope="session")
def reuse(small: list[str], finished: Finished) -> list[str]:
    """As ``small``, with the cache of the finished sweep."""
    return [*small, f"paths.cache={finished.cache}"]


@pytest.fixture(scope="session")
def language_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model."""
    return save_language(tmp_path_factory.mktemp("language_base"), context=1024, words=tiny_exams.WORDS)


@pytest.fixture(scope="session")
def language_job(language_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of a language model's job that takes seconds, on three tasks."""
    return tiny_exams.job(language_base, tiny_exams.save_exams(tmp_path_factory.mktemp("exams")))


@pytest.fixture
def read_only_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody can write to, not even the superuser."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    with mounted(folder, "ro"):
        yield folder
