"""Hub names and assets become folders, with what identifies them."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from merge_models import save, state

from twin_merging.errors import UserError
from twin_merging.standalone.cli import main
from twin_merging.standalone.sources import find

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> list[dict]:
    """A hub whose every repository is the same tiny model; the requests that it got."""
    requests = []

    def download(name, **settings):
        requests.append({"name": name, **settings})
        folder = tmp_path / "hub" / name.replace("/", "--") / COMMIT
        return str(folder if folder.exists() else save(folder, "bert", len(requests)))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return requests


def test_models_of_the_hub_merge_and_the_card_names_their_commits(tmp_path, hub):
    command = ["base=some/base", "experts=[some/first,some/second@v2]", "merge_method=weight_averaging"]
    assert main([*command, f"out={tmp_path / 'out'}"]) == 0
    assert [(request["name"], request["revision"]) for request in hub] == [
        ("some/base", None), ("some/first", None), ("some/second", "v2")
    ]  # fmt: skip
    for request in hub:
        assert "*.safetensors" in request["allow_patterns"]
        assert not any("bin" in pattern or pattern == "*" for pattern in request["allow_patterns"])
    card = (tmp_path / "out/README.md").read_text()
    assert 'base_model:\n- "some/base"\n- "some/first"\n- "some/second"' in card
    assert card.count(f"hub, commit {COMMIT}") == 3
    first, second = (state(tmp_path / "hub" / f"some--{name}" / COMMIT) for name in ("first", "second"))
    name = "classifier.weight"
    assert (state(tmp_path / "out")[name] - (first[name] + second[name]) / 2).abs().max() < 1e-6


def test_a_hub_that_cannot_be_reached(monkeypatch):
    def fail(*_, **__):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="cannot be had from the hub") as caught:
        find("some/model", "experts[0]")
    assert caught.value.key == "experts[0]"


def test_an_asset_that_does_not_exist():
    with pytest.raises(UserError) as caught:
        find("asset:no_such_asset", "base")
    assert "no_such_asset" in str(caught.value)


def test_a_folder_is_identified_by_sizes_and_headers(tmp_path):
    save(tmp_path / "model", "bert", 0)
    source = find(str(tmp_path / "model"), "base")
    identity = source.identity()
    assert identity["folder"] == "model"
    assert identity["files"]["model.safetensors"]["bytes"] == (tmp_path / "model/model.safetensors").stat().st_size
    config = Path(tmp_path / "model/config.json")
    config.write_text(config.read_text() + " ")
    assert find(str(tmp_path / "model"), "base").identity() != identity
