"""HELM's files: found in the user's folder and laid where HELM looks, so that it downloads nothing."""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from twin_merging.checksums import sha256_of
from twin_merging.errors import UserError, nearest, unknown
from twin_merging.evaluation.helm.tasks import TASKS, HelmTask

FOLDER = "generative"


def find_task(name: str) -> HelmTask:
    """The task of this name.

    Raises:
        UserError: for an unknown name; lists the known ones.
    """
    if name not in TASKS:
        raise unknown("tasks.names", name, TASKS, "generative task")
    return TASKS[name]


def known_parts(task: str, data: Path) -> tuple[str, ...]:
    """The subjects or categories whose files are in ``data``, or that HELM generates; ``("",)`` for a task without parts.

    Raises:
        UserError: for an unknown task, or if there is none.
    """
    named, generated = find_task(task).parts, find_task(task).generated
    if named is None:
        return generated or ("",)
    parts = _named_parts(task, data)
    if not parts:
        folder, pattern = named
        expected = f"{FOLDER}/{task}/{folder}/ with files named {pattern}"
        raise UserError("no files of this task", key="paths.data", found=data, expected=expected)
    return parts


def _named_parts(task: str, data: Path) -> tuple[str, ...]:
    folder, pattern = find_task(task).parts or ("", "")
    names = (re.fullmatch(pattern, path.name) for path in (data / FOLDER / task / folder).glob("*"))
    return tuple(sorted({name[1] for name in names if name}))


def identity(task: str, parts: Sequence[str], data: Path) -> dict[str, Any]:
    """What determines the rows of these parts: the SHA-256 of each file, and HELM's version, which reads and words them.

    Raises:
        UserError: as ``known_parts`` and ``source_files``.
    """
    chosen = parts or known_parts(task, data)
    files = {
        part: {target: sha256_of(path) for target, path in source_files(task, part, data).items()} for part in chosen
    }
    return {"source": "helm", "task": task, "reader": 1, "helm": version("crfm-helm"), "files": files}


def source_files(task: str, part: str, data: Path) -> dict[str, Path]:
    """Where HELM looks for a file -> where it lies in ``data``/generative/TASK.

    Raises:
        UserError: for an unknown task or kind of generated rows, or naming the missing file and where it is expected.
    """
    generated = find_task(task).generated
    if generated and part not in generated:
        raise unknown(f"tasks.parts.{task}", part, generated, "part")
    folder = data / FOLDER / task
    found = {}
    for target, candidates in find_task(task).files(part).items():
        paths = [folder / candidate for candidate in candidates if (folder / candidate).is_file()]
        if not paths:
            raise _missing(task, part, folder, candidates, data)
        found[target] = paths[0]
    return found


def lay_out(task: str, part: str, data: Path, benchmark: Path) -> None:
    """Link the task's files into HELM's ``benchmark`` folder.

    Raises:
        UserError: as ``source_files``, or if a pickle holds more than plain data.
    """
    place = benchmark / "scenarios" / find_task(task).scenario
    for target, source in source_files(task, part, data).items():
        if source.suffix == ".pk":
            check_plain(source)
        link = place / target
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(source.resolve())


def check_plain(path: Path) -> None:
    """Read a pickle that may hold lists, dicts, texts and numbers only: HELM would run whatever code another one names.

    Raises:
        UserError: if it holds anything else, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            _Plain(file).load()
    except (OSError, EOFError, ValueError, IndexError, KeyError, pickle.UnpicklingError) as error:
        expected = "a pickle of plain lists, dicts and texts"
        raise UserError(f"refused ({error})", key=str(path), expected=expected) from error


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"it names {module}.{name}, and only plain data is read")


def _missing(task: str, part: str, folder: Path, candidates: tuple[str, ...], data: Path) -> UserError:
    named = f"{task} {part}".strip()
    close = nearest(part, _named_parts(task, data)) if part else None
    return UserError(
        f"a file of {named} is missing", key="paths.data", found=data, expected=str(folder / candidates[0]), nearest=close,
        hint="nothing is downloaded: put the file there, in the layout that HELM reads",
    )  # fmt: skip
