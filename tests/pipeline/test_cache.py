"""Artefacts are computed once, are complete or absent, and are never trusted when damaged."""

from __future__ import annotations

import errno
import gc
import json
import logging
from pathlib import Path

import pytest

from twin_merging.errors import UserError
from twin_merging.pipeline import cache as module
from twin_merging.pipeline.cache import Cache, clean, listing
from twin_merging.pipeline.stage import Stage, upstream


class Work:
    """A stage's computation that counts how often it runs."""

    def __init__(self, content: str = "content"):
        self.content, self.runs = content, 0

    def __call__(self, folder: Path, scratch: Path) -> None:
        self.runs += 1
        (folder / "out.json").write_text(json.dumps(self.content))
        (folder / "more").mkdir()
        (folder / "more" / "data.txt").write_text("x" * 100)


def stage_of(work, name: str = "data", options=1, inputs: tuple[Stage, ...] = (), version: int = 1) -> Stage:
    return Stage(name, "a label", options, inputs, lambda: work, version)


@pytest.fixture
def lines(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("twin_merging"), "propagate", True)
    caplog.set_level(logging.INFO, "twin_merging")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture(autouse=True)
def nothing_checked_yet(monkeypatch):
    monkeypatch.setattr(module, "_checked", set())


def files_under(root: Path) -> set[str]:
    """Everything that is not a lock."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_computed_once_then_found(tmp_path, lines):
    work = Work()
    stage = stage_of(work)
    first, cache = Cache(tmp_path), Cache(tmp_path)
    computed, again, found = first.get(stage), first.get(stage), cache.get(stage)
    assert work.runs == 1
    assert (computed.cached, found.cached) == (False, True)
    assert again is computed
    assert found.json("out.json") == "content"
    assert found.path("more/data.txt").read_text() == "x" * 100
    assert found.bytes("more/data.txt") == 100
    assert (found.seconds, found.peak_memory) == (computed.seconds, computed.peak_memory)
    assert found.peak_memory > 0
    assert (first.computed, cache.computed) == ({stage.key}, set())
    assert lines()[0].startswith("  data       a label")
    assert "computed in" in lines()[0]
    assert lines()[1].endswith("cached")


def test_only_the_finished_artefact_and_its_manifest_are_left(tmp_path):
    stage = stage_of(Work())
    Cache(tmp_path).get(stage)
    here = f"data/{stage.key}"
    assert files_under(tmp_path) == {f"{here}/out.json", f"{here}/more/data.txt", f"{here}/manifest.json"}
    manifest = json.loads((tmp_path / here / "manifest.json").read_text())
    assert manifest["options"] == 1
    assert set(manifest["files"]) == {"out.json", "more/data.txt"}


def test_the_key_follows_from_everything_that_determines_the_artefact():
    work = Work()
    inner, other = stage_of(work, options="inner"), stage_of(work, options="other")
    stages = [
        stage_of(work),
        stage_of(work, name="base"),
        stage_of(work, options=2),
        stage_of(work, options={"a": 1}),
        stage_of(work, options={"a": 2}),
        stage_of(work, options=[1]),
        stage_of(work, options=None),
        stage_of(work, version=2),
        stage_of(work, inputs=(inner,)),
        stage_of(work, inputs=(other,)),
        stage_of(work, inputs=(inner, other)),
        stage_of(work, inputs=(other, inner)),
        stage_of(work, inputs=(stage_of(work, inputs=(inner,)),)),
    ]
    assert len({stage.key for stage in stages}) == len(stages)


def test_the_key_follows_from_nothing_else():
    one = Stage("data", "label", {"a": 1, "b": 2}, (), Work)
    two = Stage("data", "another label", {"b": 2, "a": 1}, (), dict)
    assert one.key == two.key
    assert len(one.key) == 20


def test_inputs_are_computed_first_and_only_when_needed(tmp_path):
    inner, outer = Work("inner"), Work("outer")
    first = stage_of(inner, "data")
    second = stage_of(outer, "base", inputs=(first,))
    Cache(tmp_path).get(second)
    assert (inner.runs, outer.runs) == (1, 1)
    module.shutil.rmtree(tmp_path / "data")
    Cache(tmp_path).get(second)
    assert (inner.runs, outer.runs) == (1, 1)  # what nothing asks for is not made again


def test_upstream_gives_inputs_first_and_each_once():
    a = stage_of(Work(), options="a")
    b = stage_of(Work(), options="b", inputs=(a,))
    c = stage_of(Work(), options="c", inputs=(a, b))
    assert [stage.options for stage in upstream(c)] == ["a", "b", "c"]


def test_read_finds_and_adds_nothing(tmp_path):
    known, new = Work(), Work()
    Cache(tmp_path).get(stage_of(known, options="known"))
    before = files_under(tmp_path)
    cache = Cache(tmp_path, "read")
    assert cache.get(stage_of(known, options="known")).cached
    assert cache.get(stage_of(new, options="new")).json("out.json") == "content"
    cache.get(stage_of(new, options="new"))
    assert (known.runs, new.runs) == (1, 1)
    assert files_under(tmp_path) == before


def test_off_neither_finds_nor_adds(tmp_path):
    work = Work()
    Cache(tmp_path).get(stage_of(work))
    before = files_under(tmp_path)
    cache = Cache(tmp_path, "off")
    assert cache.find(stage_of(work)) is None
    artefact = cache.get(stage_of(work))
    cache.get(stage_of(work))
    assert work.runs == 2
    assert not artefact.cached
    assert tmp_path not in artefact.folder.parents
    assert files_under(tmp_path) == before
    folder = artefact.folder
    del cache, artefact
    gc.collect()
    assert not folder.exists()


def test_find_computes_nothing(tmp_path):
    work = Work()
    assert Cache(tmp_path).find(stage_of(work)) is None
    assert work.runs == 0
    assert files_under(tmp_path) == set()


def broken_by(change) -> list:
    return pytest.param(change, id=change.__name__)


def shorter(folder: Path) -> None:
    (folder / "out.json").write_text("")


def file_gone(folder: Path) -> None:
    (folder / "more" / "data.txt").unlink()


def manifest_gone(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def manifest_cut(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])


def manifest_of_another_kind(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1, 2]")


def manifest_without_files(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


def manifest_without_seconds(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["seconds"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


DAMAGES = [
    shorter, file_gone, manifest_gone, manifest_cut, manifest_of_another_kind, manifest_without_files, manifest_without_seconds,
]  # fmt: skip


@pytest.mark.parametrize("damage", [broken_by(change) for change in DAMAGES])
def test_a_damaged_artefact_is_said_and_computed_again(tmp_path, lines, damage):
    work = Work()
    stage = stage_of(work)
    damage(Cache(tmp_path).get(stage).folder)
    artefact = Cache(tmp_path).get(stage)
    assert work.runs == 2
    assert not artefact.cached
    assert artefact.json("out.json") == "content"
    assert any("computed again" in line and stage.key in line for line in lines())
    assert Cache(tmp_path).get(stage).cached


def test_changed_content_of_equal_size_is_found_on_reading(tmp_path):
    stage = stage_of(Work())
    folder = Cache(tmp_path).get(stage).folder
    (folder / "out.json").write_text('"CONTENT"')
    artefact = Cache(tmp_path).get(stage)
    with pytest.raises(UserError, match="damaged") as caught:
        artefact.json("out.json")
    assert caught.value.key == str(folder / "out.json")
    assert str(folder) in caught.value.hint


def test_a_stage_that_fails_leaves_no_artefact_and_can_be_repeated(tmp_path):
    def fail(folder: Path, scratch: Path) -> None:
        (folder / "half.txt").write_text("half")
        (scratch / "progress.txt").write_text("kept")
        raise ValueError("broken")

    stage = stage_of(fail)
    with pytest.raises(ValueError, match="broken"):
        Cache(tmp_path).get(stage)
    assert files_under(tmp_path) == {f"unfinished/data-{stage.key}/progress.txt"}  # for the next attempt
    assert Cache(tmp_path).find(stage) is None
    work = Work()
    assert not Cache(tmp_path).get(stage_of(work)).cached
    assert not any("unfinished" in name for name in files_under(tmp_path))


def test_scratch_outlives_a_failure(tmp_path):
    seen = []

    def resume(folder: Path, scratch: Path) -> None:
        seen.append(sorted(path.name for path in scratch.iterdir()))
        (scratch / f"step-{len(seen)}").touch()
        if len(seen) < 3:
            raise RuntimeError

    stage = stage_of(resume)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            Cache(tmp_path).get(stage)
    Cache(tmp_path).get(stage)
    assert seen == [[], ["step-1"], ["step-1", "step-2"]]


WRAPPED = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("mode", ["write", "off"])
@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "quota"), WRAPPED],
    ids=["ENOSPC", "EDQUOT", "wrapped"],
)
def test_a_full_disk_is_explained_and_leaves_nothing(tmp_path, error, mode):
    def fill(folder: Path, scratch: Path) -> None:
        (folder / "half.bin").write_bytes(b"x" * 1000)
        raise error

    with pytest.raises(UserError, match="the disk is full") as caught:
        Cache(tmp_path, mode).get(stage_of(fill))
    assert caught.value.key == ("paths.cache" if mode == "write" else "TMPDIR")
    assert "MB free" in caught.value.found
    assert files_under(tmp_path) == set()
    assert not Cache(tmp_path).get(stage_of(Work())).cached  # once there is room, it goes on


def test_other_errors_of_the_system_are_not_called_a_full_disk(tmp_path):
    def fail(folder: Path, scratch: Path) -> None:
        raise PermissionError(errno.EACCES, "not allowed")

    with pytest.raises(PermissionError):
        Cache(tmp_path).get(stage_of(fail))


def test_listing_counts_artefacts_and_bytes(tmp_path):
    cache = Cache(tmp_path)
    for options in (1, 2):
        cache.get(stage_of(Work(), "data", options))
    cache.get(stage_of(Work(), "base"))
    (tmp_path / "data" / f".{stage_of(Work(), 'data', 3).key}-abc").mkdir()  # of a killed process
    sizes = {
        name: sum(path.stat().st_size for path in (tmp_path / name).rglob("*") if path.is_file())
        for name in ("base", "data")
    }
    assert [row for row in listing(tmp_path) if row[0] != "unfinished"] == [
        ("base", 1, sizes["base"]),
        ("data", 2, sizes["data"]),
    ]


def test_listing_and_cleaning_where_there_is_no_cache(tmp_path):
    assert listing(tmp_path / "none") == []
    assert clean(tmp_path / "none") == 0


def test_clean_removes_artefacts_and_leftovers_and_counts_bytes(tmp_path):
    stage = stage_of(Work())
    Cache(tmp_path).get(stage)
    damaged = stage_of(Work(), options="damaged")
    manifest_gone(Cache(tmp_path).get(damaged).folder)
    killed = tmp_path / "data" / f".{stage.key}-abc_123"
    scratch = tmp_path / "unfinished" / f"data-{stage.key}"
    for folder in (killed, scratch):
        folder.mkdir(parents=True)
        (folder / "half.bin").write_bytes(b"x" * 1000)
    size = sum((tmp_path / name).stat().st_size for name in files_under(tmp_path))
    assert clean(tmp_path) == size
    assert files_under(tmp_path) == set()
    assert Cache(tmp_path).find(stage) is None


def test_clean_leaves_what_no_cache_made(tmp_path):
    mine = tmp_path / "thesis" / "chapter-1"
    mine.mkdir(parents=True)
    (mine / "manifest.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    Cache(tmp_path).get(stage_of(Work()))
    clean(tmp_path)
    assert files_under(tmp_path) == {"thesis/chapter-1/manifest.json", "notes.txt"}
