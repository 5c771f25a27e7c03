"""The model card: how a model was made, of what, and how it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from twin_merging.standalone.options import MergeOptions
from twin_merging.standalone.sources import Source
from twin_merging.validation import to_plain

PACKAGES = ("twin_merging", "torch", "safetensors")


def write_card(
    folder: Path, options: MergeOptions, base: Source, experts: Sequence[Source], *, library: str = "transformers",
    usage: str = "", notes: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write ``README.md`` with the front matter that the Hugging Face hub reads.

    Args:
        library: what loads the model.
        usage: how, where the library alone does not.
        notes: what a reader has to know of the merge besides its options.
    """
    method = options.merge_method
    plain = to_plain(options)
    hidden = ["base", "experts", "out", "router", "plugins"]  # one's own folders
    hidden += [] if method.name == "twin" else ["sparsifier"]
    shown = {key: value for key, value in plain.items() if key not in hidden}
    text = _template().render(
        title=Path(options.out).name, method=method, about=(type(method).__doc__ or "").strip().splitlines()[0],
        base=_described(base), experts=[_described(expert) for expert in experts], library=library, usage=usage,
        options=yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).strip(), notes=notes, versions=_versions(),
    )  # fmt: skip
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")


@cache
def _template():
    folder = Path(__file__).parent
    return Environment(
        loader=FileSystemLoader(folder), undefined=StrictUndefined, autoescape=False, keep_trailing_newline=False
    ).get_template("card.md.jinja")


def _described(source: Source) -> dict[str, Any]:
    origin = source.origin
    name = origin.get("hub") or origin.get("asset") or origin.get("folder")
    where = f"hub, commit {origin['commit']}" if "hub" in origin else "offline asset" if "asset" in origin else "folder"
    kind = ", LoRA adapter" if source.is_adapter else ""
    return {"key": source.key, "name": name, "origin": where + kind, "files": source.weights.identity()}


def _versions() -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
