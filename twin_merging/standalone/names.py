"""Which tensor of an expert belongs to which of the base, where the two were saved from different classes."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twin_merging.safetensors_format import Entry

OUTPUTS = ("lm_head.weight", "lm_head.decoder.weight", "predictions.decoder.weight", "embed_out.weight")
INPUTS = (
    "embed_tokens.weight", "word_embeddings.weight", "wte.weight", "shared.weight", "embed_in.weight", "tok_embeddings.weight"
)  # fmt: skip
"""Ends of the names of output and input embeddings, which are one tensor in models that tie them."""


def prefixes(base: Collection[str], expert: Collection[str]) -> tuple[str, str]:
    """(cut, add): an expert's name is the base's without ``cut`` and after ``add``.

    A model with a head keeps its encoder under a prefix such as ``roberta.``, which the encoder saved alone has not. Of
    all prefixes the one is taken under which most names are found; none, if that does as well.
    """
    candidates = [("", "")]
    candidates += [("", f"{top}.") for top in dict.fromkeys(name.partition(".")[0] for name in expert)]
    candidates += [(f"{top}.", "") for top in dict.fromkeys(name.partition(".")[0] for name in base)]
    return max(candidates, key=lambda each: sum(renamed(name, each) in expert for name in base))


def renamed(name: str, prefix: tuple[str, str]) -> str:
    """The expert's name of the base's ``name``."""
    cut, add = prefix
    return name if cut and not name.startswith(cut) else add + name[len(cut) :]


def is_output(name: str) -> bool:
    """Whether ``name`` is an output embedding, which a model may tie to its input embedding."""
    return name.endswith(OUTPUTS)


def tied_input(output: str, entries: Mapping[str, Entry]) -> str | None:
    """The input embedding that an absent output embedding is tied to, among a checkpoint's tensors."""
    found = [name for name in entries if name.endswith(INPUTS)]
    return found[0] if len(found) == 1 and is_output(output) else None


def ties(config: Mapping[str, Any]) -> bool:
    """Whether a model of this configuration has one tensor as input and output embedding."""
    return bool(config.get("tie_word_embeddings", True))


class Renamed(Mapping[str, Tensor]):
    """An expert's tensors under the base's names, with the base's number of rows.

    Args:
        base: θ₀, whose rows stand in for tokens that the expert does not know.
        expert: θ_t as it was saved.
        names: its name for each of the base's.
    """

    def __init__(self, base: Mapping[str, Tensor], expert: Mapping[str, Tensor], names: Mapping[str, str]):
        self.base, self.expert, self.names = base, expert, names
        self._extended: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.expert[self.names[name]]
        rows = tensor.shape[0] if tensor.dim() else 0
        if tensor.dim() and rows != (wanted := len(self.base[name])):
            if rows > wanted:
                return tensor[:wanted]
            if name not in self._extended:  # an embedding, which is kept since it is read in many pieces
                self._extended[name] = torch.cat([tensor, self.base[name][rows:].to(tensor.dtype)])
            return self._extended[name]
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def vocabulary(folder: Path) -> dict[int, str] | None:
    """Token by number, of tokenizer.json, vocab.json or vocab.txt; None if there is none that can be read."""
    try:
        if (folder / "tokenizer.json").is_file():
            content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            known = content["model"]["vocab"]
            tokens = {number: piece[0] for number, piece in enumerate(known)} if isinstance(known, list) else {
                number: token for token, number in known.items()
            }  # fmt: skip
            return tokens | {added["id"]: added["content"] for added in content.get("added_tokens", [])}
        if (folder / "vocab.json").is_file():
            known = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
            return {number: token for token, number in known.items()}
        if (folder / "vocab.txt").is_file():
            return dict(enumerate((folder / "vocab.txt").read_text(encoding="utf-8").splitlines()))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
    return None
