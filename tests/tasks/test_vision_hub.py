"""Image tasks from the hub: read from a local cache of the hub's client, in files that ``datasets`` wrote, as those of the hub are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import numpy as np
import pytest
import yaml
from backbones.tiny_images import png
from huggingface_hub import constants

from twin_merging import config
from twin_merging.backbones.zero_shot import templates_of
from twin_merging.compose import plan
from twin_merging.errors import UserError
from twin_merging.mirror.fetch import fetch
from twin_merging.mirror.needs import needed
from twin_merging.tasks.splits import prepare
from twin_merging.tasks.vision import Vision
from twin_merging.tasks.vision_hub import DESCRIBED, HubVision, read_entry

COMMIT = "c" * 40
FORMS = {"splits": {"train": "data/train-*.parquet", "test": "data/test-*.parquet"}}
SIZES = {
    "sun397": 397, "stanford_cars": 196, "resisc45": 45, "eurosat": 10, "svhn": 10, "gtsrb": 43, "mnist": 10, "dtd": 47,
    "cifar100": 100, "stl10": 10, "flowers102": 102, "oxford_pets": 37, "pcam": 2, "fer2013": 7, "emnist_letters": 26,
    "cifar10_full": 10, "food101": 101, "fashion_mnist": 10, "rendered_sst2": 2, "kmnist": 10,
}  # fmt: skip


def image(number: int) -> bytes:
    return png(np.full((4, 4, 3), number, np.uint8))


def write(path: Path, numbers: range, label=None, columns: tuple[str, str] = ("image", "label")) -> None:
    """Some images in a file, as ``datasets`` writes it."""
    label = label or datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({columns[0]: datasets.Image(), columns[1]: label})
    rows = {columns[0]: [{"bytes": image(n), "path": None} for n in numbers], columns[1]: [n % 2 for n in numbers]}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of owner/pets at COMMIT in the client's cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place = tmp_path / "hub/datasets--owner--pets"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(COMMIT)
    files = place / "snapshots" / COMMIT
    write(files / "data/train-00000-of-00002.parquet", range(0, 12))
    write(files / "data/train-00001-of-00002.parquet", range(12, 20))
    write(files / "data/test-00000-of-00001.parquet", range(30, 36))
    write(files / "data/contrast-00000-of-00001.parquet", range(40, 46))
    return files


def described(folder: Path, name: str = "pets", **entry) -> Path:
    """A folder with one description."""
    folder = folder / "described"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"hub": "owner/pets", **FORMS, **entry}))
    return folder


def source(folder: Path, **paths: str) -> Vision:
    return Vision(config.VisionTasks(names=["pets"], hub=str(folder)), config.Paths(**paths))


def test_a_described_data_set_is_read_from_the_hubs_files(hub: Path, tmp_path: Path):
    found = source(described(tmp_path))
    assert "pets" in found.known()
    assert found.assets("pets") == ()
    raw = found.load("pets")
    assert raw.class_names == ("cat", "dog")  # the repository's own
    assert raw.splits["train"].labels == [n % 2 for n in range(20)]
    assert [raw.images[key] for (key,) in raw.splits["train"].texts] == [image(n) for n in range(20)]
    assert [raw.images[key] for (key,) in raw.splits["test"].texts] == [image(n) for n in range(30, 36)]
    assert set(raw.splits) == {"train", "test"}
    assert raw.provenance["source"] == f"owner/pets at {COMMIT}"
    task = prepare(raw, config.Rows(), None, 0, held_out=1)
    assert {name: len(split) for name, split in task.splits.items()} == {"train": 19, "validation": 1, "test": 6}
    assert found.identity("pets")["commit"] == COMMIT


def test_columns_names_and_booleans_are_as_described(hub: Path, tmp_path: Path):
    columns = ("img", "is_dog")
    write(hub / "own/train/0000.parquet", range(6), datasets.Value("bool"), columns)
    write(hub / "own/held/0000.parquet", range(6, 8), datasets.Value("bool"), columns)
    splits = {"train": "*/train/*.parquet", "validation": "*/held/*.parquet"}
    folder = described(tmp_path, splits=splits, image="img", label="is_dog", names=["a cat", "a dog"])
    raw = source(folder).load("pets")
    assert raw.class_names == ("a cat", "a dog")
    assert raw.splits["train"].labels == [0, 1, 0, 1, 0, 1]
    assert [raw.images[key] for (key,) in raw.splits["validation"].texts] == [image(6), image(7)]


def test_what_is_read_has_its_identity(hub: Path, tmp_path: Path):
    def identity(**entry) -> dict:
        return source(described(tmp_path, **entry)).identity("pets")

    plain = identity()
    assert identity() == plain
    assert identity(names=["x", "y"]) != plain
    assert identity(splits={"train": "data/train-*.parquet"}) != plain
    assert identity(revision="d" * 40)["commit"] == "d" * 40  # a commit needs no look at the hub


def test_a_folder_of_the_users_goes_before(hub: Path, tmp_path: Path):
    local = tmp_path / "data/vision/pets/train"
    for name in ("left", "right"):
        (local / name).mkdir(parents=True)
        (local / name / "0.png").write_bytes(image(len(name)))
    assert source(described(tmp_path), data=str(tmp_path / "data")).load("pets").class_names == ("left", "right")


def test_a_missing_shard_is_named(hub: Path, tmp_path: Path):
    (hub / "data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="files are missing") as raised:
        source(described(tmp_path)).load("pets")
    assert (raised.value.found, raised.value.expected) == ("1 that match data/train-*.parquet", "2 shards")


def test_another_number_of_classes_is_refused(hub: Path, tmp_path: Path):
    with pytest.raises(UserError, match="not as many classes"):
        source(described(tmp_path, names=["cat", "dog", "bird"])).load("pets")


def test_without_the_hub_there_is_one_clear_error(hub: Path, tmp_path: Path):
    folder = described(tmp_path, hub="owner/others")
    for ask in (source(folder).load, source(folder).identity):
        with pytest.raises(UserError, match="cannot read owner/others from the hub") as raised:
            ask("pets")
        assert raised.value.key == "paths.data"
        assert "vision/pets/train.parquet" in raised.value.expected
        assert "scripts/mirror.py" in raised.value.hint


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"hubb": "a/b"}, "unknown key"), ({"splits": {"test": "data/*.parquet"}}, "patterns of splits"),
        ({"splits": {"train": "data/train.tar"}}, "patterns of splits"), ({"splits": {"train": "../train.parquet"}}, "patterns of splits"),
        ({"names": ["a", "a"]}, "distinct names"), ({"names": [0, 1]}, "distinct names"), ({"image": 3}, "are texts"),
    ],
)  # fmt: skip
def test_a_bad_description_is_refused(entry: dict, says: str, tmp_path: Path):
    with pytest.raises(UserError, match=says) as raised:
        read_entry(described(tmp_path, **entry) / "pets.yaml")
    assert "pets.yaml" in raised.value.key


def test_a_folder_of_descriptions_has_to_be_there(tmp_path: Path):
    with pytest.raises(UserError) as raised:
        source(tmp_path / "none").known()
    assert raised.value.key == "tasks.hub"


def test_our_descriptions_have_all_classes_and_sentences():
    entries = {path.stem: read_entry(path) for path in DESCRIBED.glob("*.yaml")}
    assert {name: len(entry.names) for name, entry in entries.items()} == SIZES
    assert all({"train", "test"} <= set(entry.splits) for entry in entries.values())
    plain = {name for name in entries if templates_of(name) == ["a photo of a {}."]}
    assert plain == set()


@pytest.mark.parametrize(("name", "count"), [("vision_clip", 8), ("vision_clip_14", 14), ("vision_clip_20", 20)])
def test_the_suites_are_of_the_hub_and_have_epochs(name: str, count: int):
    run, *_ = plan([f"+exp={name}"], multirun=False).jobs
    assert len(run.tasks.names) == count
    assert list(run.tasks.names) == list(SIZES)[:count]
    assert set(run.finetune.task_epochs) == set(run.tasks.names)
    assert run.tasks.held_out == 5000
    pieces = [piece for piece in needed([run]) if piece.key.startswith("rows ")]
    assert len(pieces) >= count - 1  # the system may have one of them
    assert all(piece.hub[1] == "dataset" for piece in pieces if piece.hub)


def test_a_mirror_has_the_files_and_the_same_identity(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, mirror = described(tmp_path), tmp_path / "mirror"
    names = [path.relative_to(hub).as_posix() for path in sorted(hub.rglob("*.parquet"))]
    about = SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename=name, lfs=None) for name in names])

    def download(repository: str, name: str, repo_type: str, revision: str, local_dir: Path) -> str:
        assert (repository, repo_type, revision) == ("owner/pets", "dataset", COMMIT)
        path = Path(local_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((hub / name).read_bytes())
        return str(path)

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(repo_info=lambda *_, **__: about))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    from_hub = source(folder)
    before = from_hub.identity("pets")
    fetch([from_hub.rows_to_mirror("pets")], mirror)
    assert not list(mirror.rglob("contrast*"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    after = source(folder, mirror=str(mirror))
    assert after.identity("pets") == before
    assert after.load("pets").splits["train"].labels == [n % 2 for n in range(20)]
    with pytest.raises(UserError, match="not in the mirror"):
        HubVision(config.VisionTasks(), config.Paths(mirror=str(mirror))).load("mnist")
