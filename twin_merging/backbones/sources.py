"""Where pre-trained weights come from: an offline asset, a folder, or the hub; and what identifies them."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twin_merging import assets
from twin_merging.checksums import sha256_of
from twin_merging.errors import UserError
from twin_merging.mirror.folder import MANIFEST, find_model
from twin_merging.parameters import is_statistic

ASSET = "asset:"
HASHED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.tiktoken", "*.jinja")
"""What a model comes as and what identifies it: weights, configuration, tokenizer and its chat template."""
CODE = "*.py"
"""Modelling code that comes with weights, where ``backbone.trust_remote_code`` lets it run."""
CONFIGS = ("config.json", "adapter_config.json", "open_clip_config.json")
"""One of these is in the folder of a model, of an adapter, or of a CLIP in open_clip's form."""


@dataclass(frozen=True)
class Source:
    """A folder with weights, tokenizer and config, and plain JSON that identifies its content."""

    folder: Path
    identity: dict[str, Any]


def locate(
    pretrained: str, revision: str | None, asset_folder: Path, key: str = "backbone.pretrained",
    patterns: Sequence[str] = HASHED, mirror: Path | None = None, bare: bool = False,
) -> Source:  # fmt: skip
    """Find weights, fetching them if they are an asset or on the hub, from where files of these ``patterns`` come.

    With a ``mirror`` nothing is fetched: what is neither in it nor a folder is missing. A ``bare`` folder has weights and
    need not have a configuration.

    Raises:
        UserError: if there is no such asset, folder or hub repository, or it cannot be reached.
    """
    if pretrained.startswith(ASSET):
        name = pretrained.removeprefix(ASSET)
        return Source(assets.model_folder(name, asset_folder), {"asset": name, "sha256": assets.identity(name)})
    if mirror is not None and (mirrored := find_model(mirror, pretrained, revision)) is not None:
        place, commit = mirrored
        identity = (
            {"hub": pretrained, "commit": commit} if commit else {"files": _fingerprint(place, key, patterns, bare)}
        )
        return Source(place, identity)
    folder = Path(pretrained).expanduser()
    if folder.is_dir():
        return Source(folder, {"files": _fingerprint(folder, key, patterns, bare)})
    if folder.is_absolute() or pretrained.startswith(".") or pretrained.count("/") > 1:
        raise UserError(
            "no such folder", key=key, found=pretrained, expected="a folder with config.json and safetensors weights"
        )
    if mirror is not None:
        raise UserError(
            "not in the mirror", key=key, found=pretrained, expected=f"a model that {mirror / MANIFEST} lists",
            hint="python scripts/mirror.py with the same arguments fetches it where a network is",
        )  # fmt: skip
    return _from_hub(pretrained, revision, key, patterns)


def patterns_of(trust_remote_code: bool) -> tuple[str, ...]:
    """The files that a model comes as, its code among them if that is going to run."""
    return (*HASHED, CODE) if trust_remote_code else HASHED


def check_code(folder: Path) -> None:
    """Raise a UserError if transformers does not know the model's architecture, so that it needs code that comes with it."""
    config = read_config(folder)
    if "auto_map" not in config:
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if config.get("model_type") not in CONFIG_MAPPING_NAMES:
        raise UserError(
            "this model runs only by modelling code that comes with its weights", key="backbone.trust_remote_code",
            found=f"false, and {config.get('model_type')} in {folder / 'config.json'}", expected="true, once you have read that code",
            hint="or a model whose architecture transformers knows, as it does that of backbone=qwen2_5_14b",
        )  # fmt: skip


def largest_rank(folder: Path) -> int | None:
    """The largest min(m, n) over the checkpoint's matrices, read from the files' headers alone."""
    ranks = [min(shape) for file in folder.glob("*.safetensors") for shape in _shapes(file) if len(shape) == 2]
    return max(ranks, default=None)


def has_running_statistics(folder: Path) -> bool:
    """Whether the checkpoint is of a model with BatchNorm, read from the files' headers alone."""
    names = (name for file in sorted(folder.glob("*.safetensors")) for name in _entries(file))
    return any(map(is_statistic, names))


def layers_of(folder: Path) -> int | None:
    """The number of layers that the model's config.json names, if it does so in the usual way."""
    return read_config(folder).get("num_hidden_layers")


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot be read ({error})", key=str(folder / "config.json"), expected="a model's configuration"
        ) from error


def checkpoint_bytes(folder: Path) -> int:
    """Bytes of the checkpoint's weight files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _shapes(file: Path) -> list[list[int]]:
    return [entry["shape"] for entry in _entries(file).values()]


def _entries(file: Path) -> dict[str, Any]:
    """What the header says of each tensor."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, file.stat().st_size)))
    except (struct.error, ValueError) as error:
        found = f"{file.stat().st_size} bytes"
        raise UserError(
            "a damaged safetensors file", key=str(file), found=found, hint="fetch or copy it again"
        ) from error
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def _fingerprint(folder: Path, key: str, patterns: Sequence[str], bare: bool = False) -> dict[str, str]:
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    enough = CONFIGS if not bare else [*CONFIGS, *(file.name for file in files if file.suffix == ".safetensors")]
    if not any((folder / name).is_file() for name in enough):
        raise UserError(
            "no model in this folder", key=key, found=folder, expected="config.json and safetensors weights"
        )
    return {file.name: sha256_of(file) for file in files}


def _from_hub(name: str, revision: str | None, key: str, patterns: Sequence[str]) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=list(patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"cannot be had from the hub ({str(error).splitlines()[0]})", key=key, found=name,
            expected="a hub name, a local folder, or asset:NAME", hint="without network use a folder, paths.mirror=DIR of scripts/mirror.py, or backbone=minilm, dinov2_small or smollm2",
        ) from error  # fmt: skip
    return Source(Path(folder), {"hub": name, "commit": Path(folder).name})
