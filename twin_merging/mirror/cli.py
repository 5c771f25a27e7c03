"""The command ``scripts/mirror.py``: list, fetch or verify what an experiment needs on a machine without a network."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from twin_merging.errors import UserError, exit_code
from twin_merging.mirror.folder import read_manifest, verify
from twin_merging.mirror.needs import needed
from twin_merging.mirror.piece import Piece
from twin_merging.reporting.tables import human_bytes

USAGE = """Fetch all that an experiment needs into a folder, with which run.py works without a network.

  python scripts/mirror.py +exp=NAME [key=value ...] out=DIR          fetch what is missing
  python scripts/mirror.py +exp=NAME [key=value ...] out=DIR --list   only list it
  python scripts/mirror.py verify out=DIR                             check every file against its SHA-256
  python run.py +exp=NAME paths.mirror=DIR                            use it

The same key=value arguments as run.py's say what is needed; -m allows several values."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done; 2 an error the user can mend; 130 interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or {"-h", "--help"} & {*given}:
        print(USAGE, file=sys.stdout if given else sys.stderr)
        return 0 if given else 2
    return exit_code(lambda: _run(given), "what was fetched is kept, and the same command goes on from there")


def _run(given: list[str]) -> int:
    folders = [text.removeprefix("out=") for text in given if text.startswith("out=")]
    if len(folders) != 1 or not folders[0]:
        raise UserError("the mirror's folder is needed", key="out", found=folders or None, expected="out=DIR")
    mirror = Path(folders[0]).expanduser()
    overrides = [text for text in given if not text.startswith("out=") and text not in ("--list", "-m", "--multirun")]
    if overrides and overrides[0] == "verify":
        if len(overrides) > 1:
            raise UserError("verify checks the whole mirror", found=" ".join(overrides[1:]), expected="verify out=DIR")
        pieces = verify(mirror, f"remove {mirror / 'mirror.json'} and fetch again")
        print(f"{mirror}: {len(pieces)} pieces, {human_bytes(sum(entry.size for entry in pieces.values()))}: verified")
        return 0
    if unknown := [text for text in overrides if text.startswith("-")]:
        raise UserError("unknown flag", key=unknown[0], hint="python scripts/mirror.py --help")
    if any(text.lstrip("+").startswith("paths.mirror=") for text in overrides):
        raise UserError("a mirror is not made from another one", key="paths.mirror", hint="leave it out")
    multirun = ["-m"] if {"-m", "--multirun"} & {*given} else []
    pieces_needed = _needed(overrides, bool(multirun))
    if "--list" not in given:
        from twin_merging.mirror.fetch import fetch

        _list(pieces_needed, mirror)
        fetch(pieces_needed, mirror)
        elsewhere = [text for text in overrides if not text.lstrip("+").startswith(("paths.data=", "paths.assets="))]
        print(f"done: python run.py {shlex.join([*multirun, *elsewhere, f'paths.mirror={mirror}'])}")
    else:
        _list(pieces_needed, mirror)
    return 0


def _needed(overrides: list[str], multirun: bool) -> list[Piece]:
    from twin_merging.compose import plan

    return needed(plan(overrides, multirun).jobs)


def _list(pieces: Sequence[Piece], mirror: Path) -> None:
    known = read_manifest(mirror)
    print(f"in {mirror}:")
    for piece in pieces:
        entry = known.get(piece.key)
        size = piece.size if entry is None else entry.size
        shown = "?" if size is None else human_bytes(size)
        files = f"{len(entry.files)} files" if entry else "to fetch"
        print(f"  {piece.key:<44}{shown:>10}  {files:<10} {piece.origin}")
