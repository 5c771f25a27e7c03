"""A mirror holds what was asked for and nothing else: no other file, no file from elsewhere, none that has changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from twin_merging.compose import plan
from twin_merging.errors import UserError
from twin_merging.mirror.cli import main
from twin_merging.mirror.folder import read_manifest
from twin_merging.mirror.needs import check_mirrored

ROOT = Path(__file__).parents[2]
WANTED = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"weights"}
UNWANTED = {
    "pytorch_model.bin": b"pickle", "training_args.pt": b"pickle", "modeling_own.py": b"code", "onnx/config.json": b"{}",
    "../escaped.json": b"{}", "/absolute.json": b"{}", "..\\escaped.json.bin": b"",
}  # fmt: skip
EXPERIMENT = ["+exp=glue_roberta", "tasks.names=[cola]"]


class Hub:
    """A hub with the files of one model, and of one dataset, which is asked for one file after the other."""

    def __init__(self):
        self.files = {**UNWANTED, **WANTED}
        self.rows = {
            "cola/train-00000-of-00001.parquet": b"rows", "cola/validation-00000-of-00001.parquet": b"rows",
            "cola/../../train-0.parquet": b"", "sst2/train-00000-of-00001.parquet": b"rows",
        }  # fmt: skip
        self.sent: dict[str, bytes] = {}  # in place of what it has
        self.asked: list[str] = []
        self.fails_at: str | None = None

    def repo_info(self, name: str, revision: str | None, repo_type: str, files_metadata: bool) -> SimpleNamespace:
        held = self.rows if repo_type == "dataset" else self.files
        lfs = {file: SimpleNamespace(sha256=sha256(data).hexdigest(), size=len(data)) for file, data in held.items()}
        siblings = [SimpleNamespace(rfilename=file, lfs=lfs[file]) for file in held]
        return SimpleNamespace(sha="f" * 40, siblings=siblings)

    def download(self, name: str, filename: str, repo_type: str, revision: str, local_dir: Path) -> str:
        assert revision == "f" * 40
        if filename == self.fails_at:
            raise ConnectionError("the line is dead")
        self.asked.append(filename)
        path = Path(local_dir) / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.sent.get(filename, {**self.files, **self.rows}[filename]))
        return str(path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", made.download)
    return made


@pytest.fixture
def fetched(hub: Hub, tmp_path: Path) -> Path:
    assert main([*EXPERIMENT, f"out={tmp_path / 'mirror'}"]) == 0
    return tmp_path / "mirror"


def model_of(mirror: Path) -> Path:
    (folder,) = (mirror / "models").iterdir()
    return folder


def check(mirror: Path) -> None:
    arguments = [*EXPERIMENT, f"paths.mirror={mirror}"]
    check_mirrored(plan(arguments, multirun=False).jobs, arguments)


def test_only_files_of_the_patterns_are_asked_for_and_none_that_leads_elsewhere(hub: Hub, fetched: Path):
    rows = [name for name in hub.rows if name.startswith("cola/") and ".." not in name]
    assert hub.asked == [*WANTED, *rows]
    assert {path.name for path in model_of(fetched).iterdir()} == set(WANTED)
    assert {path.name for path in (fetched / "glue/cola").iterdir()} == {name.split("/")[1] for name in rows}
    assert read_manifest(fetched)["model FacebookAI/roberta-base"].origin["commit"] == "f" * 40
    check(fetched)


def test_a_file_that_is_not_the_one_the_hub_lists_is_refused_and_fetched_anew(hub: Hub, tmp_path: Path, capsys):
    arguments = [*EXPERIMENT, f"out={tmp_path / 'mirror'}"]
    hub.sent = {"model.safetensors": b"WEIGHTS"}
    assert main(arguments) == 2
    assert "SHA-256" in capsys.readouterr().err
    assert not list((tmp_path / "mirror").rglob("*.safetensors"))
    assert read_manifest(tmp_path / "mirror") == {}
    hub.sent = {}
    assert main(arguments) == 0
    assert (model_of(tmp_path / "mirror") / "model.safetensors").read_bytes() == b"weights"


def test_pickled_weights_are_not_even_asked_for(hub: Hub, tmp_path: Path, capsys):
    del hub.files["model.safetensors"]
    assert main([*EXPERIMENT, f"out={tmp_path / 'mirror'}"]) == 2
    assert "no safetensors" in capsys.readouterr().err
    assert hub.asked == []


def test_a_line_that_breaks_is_explained_and_the_command_goes_on_later(hub: Hub, tmp_path: Path, capsys):
    arguments = [*EXPERIMENT, f"out={tmp_path / 'mirror'}"]
    hub.fails_at = "model.safetensors"
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert "the line is dead" in shown
    assert "what was fetched is kept" in shown
    (kept,) = (tmp_path / "mirror/.unfinished").iterdir()
    assert {path.name for path in kept.iterdir()} == {"config.json", "tokenizer.json"}
    (kept / "old.json").write_text("of another commit")
    hub.fails_at = None
    assert main(arguments) == 0
    assert {path.name for path in model_of(tmp_path / "mirror").iterdir()} == set(WANTED)


@pytest.mark.parametrize("place", ["../elsewhere", "/etc"])
@pytest.mark.parametrize("of_a_file", [True, False])
def test_a_manifest_that_leads_out_of_the_mirror_is_refused(fetched: Path, place: str, of_a_file: bool, capsys):
    content = json.loads((fetched / "mirror.json").read_text())
    piece = content["pieces"]["model FacebookAI/roberta-base"]
    if of_a_file:
        piece["files"][f"{place}/passwd"] = ["0" * 64, 1]
    else:
        piece["place"] = place
    (fetched / "mirror.json").write_text(json.dumps(content))
    assert main(["verify", f"out={fetched}"]) == 2
    assert "out of the mirror" in capsys.readouterr().err
    with pytest.raises(UserError, match="out of the mirror"):
        check(fetched)


def change_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")


def cut_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"wei")


def lose_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def add_code(folder: Path) -> None:
    (folder / "modeling_own.py").write_text("import os")


def link_file(folder: Path) -> None:
    outside = folder.parents[2] / "outside"
    shutil.move(folder / "model.safetensors", outside)
    (folder / "model.safetensors").symlink_to(outside)


def link_folder(folder: Path) -> None:
    outside = folder.parents[2] / "outside"
    shutil.move(folder, outside)
    folder.symlink_to(outside)


def link_to_nothing(folder: Path) -> None:
    (folder / "adapter_config.json").symlink_to("nowhere")


HARM = {
    change_weights: "damaged", cut_weights: "damaged", lose_tokenizer: "damaged", add_code: "does not list",
    link_file: "out of the mirror", link_folder: "out of the mirror", link_to_nothing: "does not list",
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__)
def test_a_mirror_that_is_not_as_it_was_fetched_is_refused_before_any_work(harm, fetched: Path, capsys):
    harm(model_of(fetched))
    with pytest.raises(UserError, match=HARM[harm]) as caught:
        check(fetched)
    assert "remove" in str(caught.value.hint)
    assert main(["verify", f"out={fetched}"]) == 2
    assert HARM[harm] in capsys.readouterr().err


def test_rows_that_were_not_fetched_are_not_read_in_place_of_those_that_were(fetched: Path):
    (fetched / "glue/cola/train.jsonl").write_text('{"sentence": "planted", "label": 0}')
    with pytest.raises(UserError, match="does not list"):
        check(fetched)


def test_a_fetch_that_is_killed_goes_on_and_ends_whole(tmp_path: Path):
    sources = []
    for name in ("base", "cola"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(os.urandom(1 << 20) * 64)
        sources.append(folder)
    rows = tmp_path / "data/glue/cola"
    rows.mkdir(parents=True)
    for split in ("train", "validation"):
        (rows / f"{split}.jsonl").write_text('{"sentence": "a", "label": 0}')
    out = tmp_path / "mirror"
    command = [
        sys.executable, str(ROOT / "scripts/mirror.py"), *EXPERIMENT, f"backbone.pretrained={sources[0]}",
        f"experts.sources={{cola: '{sources[1]}'}}", f"paths.data={tmp_path / 'data'}", f"out={out}",
    ]  # fmt: skip
    for moment in ("**/*.part", "mirror.json"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not any(out.glob(moment)):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for entry in read_manifest(out).values():  # what is listed is whole
            assert all((out / name).stat().st_size == size for name, (_, size) in entry.files.items())
    assert main(command[2:]) == 0
    assert main(["verify", f"out={out}"]) == 0
    assert len(read_manifest(out)) == 3
    assert not list(out.rglob("*.part"))
