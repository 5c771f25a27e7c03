"""A disk without room: refused before work where that can be known, explained where it fills up in the middle."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from commands import finish, refused, results, snapshot, start, succeed, wait_until
from mounts import mounted


def test_too_little_room_is_known_before_work(small: list[str], tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(disk, "size=400k"):
        arguments = ["merge_method=finetuned", *small, f"paths.cache={disk}/cache"]
        outcome = refused(*arguments, folder=tmp_path, says=["paths.cache", "too little room", "MB free"])
        assert outcome.err.startswith("error: ")
        assert not list(disk.rglob("*.safetensors"))


def fill(disk: Path, stop: threading.Event) -> None:
    """Take all the room there is, and what is set free later too."""
    with (disk / "filler").open("wb", buffering=0) as file:
        while not stop.is_set():
            for size in (1 << 16, 1 << 12, 1):
                with suppress(OSError):
                    file.write(bytes(size))


def check_that_nothing_is_lost(given: list[str], tmp_path: Path, heads: str) -> None:
    """Three experts on a disk that is full from the first on: the rest of the work is refused, and done once there is room."""
    disk, stop = tmp_path / "disk", threading.Event()
    disk.mkdir()
    with mounted(disk, "size=16m"):
        # results and logs lie on the full disk too, as they do by default
        arguments = ["merge_method=finetuned", *given, f"paths.cache={disk}/cache", f"paths.outputs={disk}/outputs"]
        process = start(*arguments, folder=tmp_path)
        assert wait_until(lambda: any(disk.glob("cache/expert/*/manifest.json")), process), finish(process).text
        filler = threading.Thread(target=fill, args=(disk, stop))
        filler.start()
        try:
            outcome = finish(process)
        finally:
            stop.set()
            filler.join()
        assert outcome.code == 2, outcome.text
        assert "the disk is full" in outcome.text
        assert "Traceback" not in outcome.text, outcome.text
        (disk / "filler").unlink()
        kept = {name: about for name, about in snapshot(disk / "cache/expert").items() if not name.startswith(".")}
        assert kept
        again = succeed(*arguments, "hydra.run.dir=again", folder=tmp_path)
        assert len(again.lines("  expert ", "computed in")) == 3 - len({name.split("/")[0] for name in kept})
        assert kept.items() <= snapshot(disk / "cache/expert").items()
        assert results(tmp_path / "again")["finetuned", heads]["average_normalized"] == 100


def test_a_disk_that_fills_up_in_the_middle_loses_nothing_that_was_finished(small: list[str], tmp_path: Path):
    check_that_nothing_is_lost(small, tmp_path, "oracle")
