"""What jobs need that does not come with the project: models with their tokenizers, and rows of tasks."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from twin_merging import assets
from twin_merging.backbones.clip_source import files_of, repository
from twin_merging.backbones.sources import ASSET, HASHED, patterns_of
from twin_merging.config import Clip, RunConfig, task_sources
from twin_merging.errors import UserError, unknown
from twin_merging.experts.published import source_of, split_revision
from twin_merging.mirror.folder import ASSETS, MANIFEST, check_entry, model_key, read_manifest
from twin_merging.mirror.piece import Piece
from twin_merging.overrides import is_hydras


def needed(runs: Sequence[RunConfig]) -> list[Piece]:
    """Every piece that some of the jobs needs, once."""
    found: dict[str, Piece] = {}
    for run in runs:
        for piece in (*_models(run), *_rows(run)):
            found.setdefault(piece.key, piece)
    return list(found.values())


def check_mirrored(runs: Sequence[RunConfig], overrides: Sequence[str]) -> None:
    """Check that the mirror of each job, if it has one, holds unharmed what the job needs; from then on no hub is asked.

    Args:
        overrides: the command line, which the command that fetches what is missing repeats.

    Raises:
        UserError: that lists what is missing and the command, or names the first file that is not what was fetched.
    """
    for mirror in dict.fromkeys(run.paths.mirror for run in runs if run.paths.mirror):
        os.environ["HF_HUB_OFFLINE"] = "1"
        folder, hint = Path(mirror).expanduser(), f"where a network is: {mirror_command(overrides, mirror)}"
        known = read_manifest(folder)
        pieces = needed([run for run in runs if run.paths.mirror == mirror])
        # what is here as a local file needs no network
        missing = [piece for piece in pieces if piece.key not in known and not piece.files]
        if missing:
            raise UserError(
                "the mirror lacks what this experiment needs", key="paths.mirror", found=mirror,
                expected="; ".join(f"{piece.key} ({piece.origin})" for piece in missing), hint=hint,
            )  # fmt: skip
        if not known:
            raise UserError(
                "no mirror", key="paths.mirror", found=mirror, expected=f"a folder with a {MANIFEST}", hint=hint
            )
        for piece in pieces:
            if piece.key in known:
                check_entry(folder, known[piece.key], f"remove {folder / MANIFEST}, and {hint}")


def mirror_command(overrides: Sequence[str], mirror: str) -> str:
    """The command that fetches into ``mirror`` what a command line of run.py needs."""
    kept = [
        text
        for text in overrides
        if not (is_hydras(text) or text.lstrip("+").startswith(("paths.mirror=", "paths.outputs=", "paths.cache=")))
    ]
    return f"python scripts/mirror.py {shlex.join([*kept, f'out={mirror}'])}"


def _models(run: RunConfig) -> list[Piece]:
    sources = [source_of(run.experts, name) for name in run.tasks.names]
    experts = [_model(*split_revision(source)) for source in sources if source is not None]
    return [*_backbone(run.backbone), *experts]


def _backbone(options: Any) -> list[Piece]:
    """The pre-trained model; none where weights are random."""
    if not isinstance(options, Clip):
        return [_model(options.pretrained, options.revision, patterns_of(options.trust_remote_code))]
    place = repository(options)
    return [] if place is None else [_model(place, options.revision, files_of(options))]


def _model(name: str, revision: str | None, patterns: tuple[str, ...] = HASHED) -> Piece:
    if name.startswith(ASSET):
        return _asset(name.removeprefix(ASSET))
    key = model_key(name, revision)
    slug = re.sub(r"[^A-Za-z0-9._-]+", "--", name).strip("-.") or "model"
    place = f"models/{slug}-{sha256(key.encode()).hexdigest()[:8]}"
    folder = Path(name).expanduser()
    if folder.is_dir():
        files = {path.name: path for pattern in patterns for path in folder.glob(pattern)}
        return Piece(key, place, files=files, weights=True)
    return Piece(key, place, hub=(name, "model"), revision=revision, patterns=patterns, weights=True)


def _asset(name: str) -> Piece:
    assets.find(name)
    return Piece(f"asset {name}", ASSETS, asset=name)


def _rows(run: RunConfig) -> list[Piece]:
    source: Any = task_sources[run.tasks.name].load()(run.tasks, run.paths)
    found = []
    for name in run.tasks.names:
        if name not in source.known():
            raise unknown("tasks.names", name, source.known(), "task")
        found += [_asset(asset) for asset in source.assets(name)]
        if hasattr(source, "rows_to_mirror"):
            pieces = source.rows_to_mirror(name)
            found += [pieces] if isinstance(pieces, Piece) else pieces
    return found
