"""The models that are to be merged: where they lie, what identifies them, and their weights, opened but not read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from twin_merging.backbones.sources import ASSET, locate, read_config
from twin_merging.errors import UserError
from twin_merging.mapped import MappedCheckpoint

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

FETCHED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "*.py")
"""What is fetched of a hub repository: weights, configuration, tokenizer and modelling code."""


@dataclass(frozen=True)
class Source:
    """A model or an adapter.

    Args:
        key: the config key that names it, for errors: ``base``, ``experts[0]``.
        given: its value.
        folder: where its files are.
        origin: plain JSON: of a hub model its name and commit, of an asset its name and hashes, of a folder its name.
    """

    key: str
    given: str
    folder: Path
    origin: dict[str, Any]

    @property
    def is_adapter(self) -> bool:
        """Whether it is a PEFT adapter and not a model."""
        return (self.folder / ADAPTER_CONFIG).is_file()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The model's config.json, or the adapter's adapter_config.json."""
        if self.is_adapter:
            return json.loads((self.folder / ADAPTER_CONFIG).read_text())
        return read_config(self.folder)

    @cached_property
    def weights(self) -> MappedCheckpoint:
        """Its tensors."""
        return MappedCheckpoint(self.folder / ADAPTER_WEIGHTS if self.is_adapter else self.folder)

    def identity(self) -> dict[str, Any]:
        """What the model card says of it. Weight files count by size and header: hashing them would read all twice."""
        file = self.folder / (ADAPTER_CONFIG if self.is_adapter else "config.json")
        return {
            **self.origin,
            "config_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "files": self.weights.identity(),
        }

    def changes(self) -> list[list[Any]]:
        """What tells a resumed merge that weights were exchanged in between: each file's path and time of change."""
        return [[str(file.path.absolute()), file.path.stat().st_mtime_ns] for file in self.weights.files]


def find(given: str, key: str) -> Source:
    """Find a model, fetching it if it is on the hub.

    Raises:
        UserError: if there is no such folder or hub repository, or no weights and configuration in it.
    """
    folder, origin = Path(given).expanduser(), {"folder": Path(given).expanduser().absolute().name}
    if not folder.is_dir():
        name, _, revision = given.partition("@")
        found = locate(name if not given.startswith(ASSET) else given, revision or None, _assets(given), key, FETCHED)
        folder, origin = found.folder, found.identity
    source = Source(key, given, folder, origin)
    if not source.is_adapter and not (folder / "config.json").is_file():
        raise UserError(
            "no model in this folder", key=key, found=folder,
            expected=f"config.json and safetensors weights, or {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}",
        )  # fmt: skip
    try:
        read = source.config
    except ValueError as error:
        raise UserError(f"cannot be read ({error})", key=str(folder / ADAPTER_CONFIG)) from error
    if read.get("quantization_config"):
        raise UserError(
            "quantized weights cannot be merged", key=key, found=read["quantization_config"].get("quant_method"),
            expected="weights of a floating-point dtype", hint="dequantize it first",
        )  # fmt: skip
    _ = source.weights
    return source


def check_router(file: str, experts: int) -> None:
    """Check that a trained router has an output for each expert.

    Raises:
        UserError: if it is no router's file, or has other outputs.
    """
    if not Path(file).is_file():
        raise UserError("no such file", key="router", found=file, expected="the router.safetensors of a run")
    entries = MappedCheckpoint(Path(file)).entries
    biases = [name for name in entries if name.startswith("layers.") and name.endswith(".bias")]
    last = max(
        biases, key=lambda name: int(name.split(".")[1]), default="bias"
    )  # of layers, or of the one that there is
    outputs = entries[last].numel if last in entries else None
    if outputs != experts:
        raise UserError(
            "this router does not route to these experts", key="router", found=f"{outputs} outputs in {file}",
            expected=f"{experts}, one an expert",
        )  # fmt: skip


def _assets(given: str) -> Path:
    from twin_merging.assets import asset_folder

    return asset_folder() if given.startswith(ASSET) else Path()
