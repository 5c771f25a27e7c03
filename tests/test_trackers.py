import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from twin_merging import config as schema
from twin_merging.errors import UserError
from twin_merging.reporting.tables import Cell, Column, Table
from twin_merging.trackers import JsonlTracker, NoTracker, TensorboardTracker, WandbTracker, redact

SECRET = "s3cr3t-value"
CONFIG = {"seed": 3, "hub": {"hf_token": SECRET}, "overrides": [f"+hub.hf_token={SECRET}", "seed=3"]}
COLUMNS = (Column("method", "", ("method",), "key"), Column("bbc", "accuracy", ("bbc raw", "bbc raw ±"), "task"))
TABLE = Table(
    "a table",
    COLUMNS,
    ((Cell("twin", ("twin",)), Cell("81.7", (0.817, None))), (Cell("ties", ("ties",)), Cell("70.0", (0.7, 0.01)))),
    warning="made up",
)
ROWS = [
    {"method": "twin", "bbc raw": 0.817, "bbc raw ±": None, "warning": "made up"},
    {"method": "ties", "bbc raw": 0.7, "bbc raw ±": 0.01, "warning": "made up"},
]


def log_everything(tracker, folder: Path):
    """Scalars of two experts, each counting from 0, a final scalar, the table and a picture."""
    picture = folder / "figures" / "red.png"
    picture.parent.mkdir()
    Image.new("RGB", (4, 3), "red").save(picture)
    for expert in ("bbc", "r8"):
        for step in range(3):
            tracker.scalars({f"{expert}/loss": 1.0 / (step + 1), f"{expert}/lr": 1e-4}, step=step)
    tracker.scalars({"average_normalized": 97.5})
    tracker.table("results", TABLE)
    tracker.image("bars", picture)
    tracker.finish()


def contents(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_the_jsonl_file_has_it_all(tmp_path):
    log_everything(JsonlTracker(schema.Tracker(), tmp_path, "run 1", CONFIG), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["name"] == "run 1"
    assert lines[0]["config"]["seed"] == 3
    losses = [(line["step"], line["values"]["bbc/loss"]) for line in lines if "bbc/loss" in line.get("values", {})]
    assert losses == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert {"step": None, "values": {"average_normalized": 97.5}}.items() <= lines[7].items()
    assert lines[8]["rows"] == ROWS
    assert lines[9]["path"] == "figures/red.png"
    assert SECRET.encode() not in contents(tmp_path)


def test_a_jsonl_line_is_on_disk_at_once_and_a_diverged_loss_is_valid_json(tmp_path):
    tracker = JsonlTracker(schema.Tracker(), tmp_path, "run", {})
    tracker.scalars({"loss": math.nan, "norm": math.inf}, step=1)
    line = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    values = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))["values"]
    assert values == {"loss": "nan", "norm": "inf"}
    tracker.finish()


def test_tensorboard_event_files_have_it_all(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log_everything(TensorboardTracker(schema.Tracker(name="tensorboard"), tmp_path, "run 1", CONFIG), tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) == {"bbc/loss", "bbc/lr", "r8/loss", "r8/lr", "average_normalized"}
    assert [(event.step, event.value) for event in events.Scalars("r8/loss")] == [
        (0, 1.0),
        (1, 0.5),
        (2, pytest.approx(1 / 3)),
    ]
    text = events.Tensors("results/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| twin | 81.7 |" in text
    assert "made up" in text
    (image,) = events.Images("bars")
    assert (image.width, image.height) == (4, 3)
    assert "run 1" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert SECRET.encode() not in contents(tmp_path)


ALONE = """
import sys
from pathlib import Path
import test_trackers as tests
sys.argv = ["run.py", f"+hub.hf_token={tests.SECRET}"]
folder = Path(sys.orig_argv[-1])
tests.log_everything(tests.WandbTracker(tests.schema.Tracker(name="wandb"), folder, "run 1", tests.CONFIG), folder)
"""


def test_wandb_offline_has_it_all_without_a_login(tmp_path, monkeypatch):
    """In a process of its own, whose end waits for wandb's service to end and so for the last block of the log.

    ``Run.finish`` tells the service to close the log without waiting for it, and a short log is all in that block. A service
    that another test began, named by WANDB_SERVICE, would not end with the process.
    """
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    folder = tmp_path / "run"
    folder.mkdir()
    process = subprocess.run([sys.executable, "-c", ALONE, str(folder)], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")

    (run,) = (folder / "wandb").glob("offline-run-*")
    history, config = read_wandb(next(run.glob("*.wandb")))
    losses = [(row["step"], row["r8/loss"]) for row in history if "r8/loss" in row]
    assert losses == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    assert [row["average_normalized"] for row in history if "average_normalized" in row] == [97.5]
    (table,) = (run / "files/media/table").glob("*.json")
    stored = json.loads(table.read_text())
    assert [dict(zip(stored["columns"], row, strict=True)) for row in stored["data"]] == ROWS
    (image,) = (run / "files/media/images").glob("*.png")
    assert Image.open(image).size == (4, 3)
    assert config["seed"] == 3
    assert SECRET.encode() not in contents(folder)


def read_wandb(path: Path) -> tuple[list[dict], dict]:
    """The history rows and the configuration of an offline run's log."""
    from wandb.proto import wandb_internal_pb2

    history, config = [], {}
    for data in log_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            history.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
        elif record.WhichOneof("record_type") == "run":
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
    return history, config


def log_records(content: bytes) -> list[bytes]:
    """The records of a LevelDB log: blocks of 32 KiB of (checksum 4, length 2, type 1, data), types 1 whole to 4 last."""
    place, records, parts = 7, [], b""  # 7: wandb's own header
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            records.append(parts)
            parts = b""
    return records


def test_wandb_online_without_a_login_is_an_error_and_not_a_question(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("asked a question"))
    with pytest.raises(UserError, match="no login") as error:
        WandbTracker(schema.Tracker(name="wandb", mode="online"), tmp_path, "run", {})
    assert error.value.key == "tracker.mode"
    assert "offline" in error.value.hint


def test_no_tracker_leaves_no_file(tmp_path):
    log_everything(NoTracker(schema.Tracker(name="none"), tmp_path, "run", CONFIG), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]


@pytest.mark.parametrize(
    "name", ["hf_token", "api_key", "apiKey", "PASSWORD", "client_secret", "passwd", "credentials"]
)
def test_secrets_are_hidden_wherever_they_are(name):
    hidden = json.dumps(redact({"a": [{name: SECRET}], "overrides": [f"a.{name}={SECRET}=="]}))
    assert SECRET not in hidden
    assert hidden.count("(hidden)") == 2


def test_what_is_no_secret_is_kept_and_the_given_mapping_is_not_changed():
    config = {"tokenizer": "bert", "max_new_tokens": 20, "seed": 1, "token": None, "grid": (0.1, 0.2), "a": "b=c"}
    assert redact(config) == config | {"grid": [0.1, 0.2]}
    which = {"router": {"token": "last"}, "overrides": ["router.token=mean"]}
    assert redact(which) == which
    before = {"key": SECRET}
    redact(before)
    assert before == {"key": SECRET}


@pytest.mark.parametrize("name", ["none", "jsonl", "wandb", "tensorboard"])
def test_every_option_sets_every_key_and_has_a_tracker(name):
    path = Path(__file__).parents[1] / "configs/tracker" / f"{name}.yaml"
    options = yaml.safe_load(path.read_text())
    assert options == {"name": name, "project": "twin_merging", "entity": None, "mode": "offline"}
    assert path.read_text().startswith("# ")
    assert set(options) == set(schema.Tracker.__dataclass_fields__)
    assert callable(schema.trackers[name].load())
