"""The generative suite as a source of tasks: where their files are, what is learned from and what is asked."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from twin_merging import assets, config
from twin_merging.errors import UserError
from twin_merging.evaluation.helm.files import FOLDER, find_task, identity, known_parts, source_files
from twin_merging.evaluation.helm.tasks import TASKS
from twin_merging.mirror.folder import ASSETS
from twin_merging.mirror.piece import Piece, local_rows
from twin_merging.tasks.generative import DOLLY, LearningRows, dolly_file, learning_identity, learning_rows
from twin_merging.tasks.offline_generative import ASSET, OFFLINE, offline_folder


class Generative:
    """MMLU, TruthfulQA, BBQ, CNN/DailyMail, XSum, GSM8K and synthetic reasoning as HELM has them.

    Args:
        options: which of them, their parts, and how many rows.
        paths: files are in ``data``/generative/TASK in HELM's layout, or in the same way in ``mirror``; else some tasks are in
            the offline assets.
    """

    def __init__(self, options: config.GenerativeTasks, paths: config.Paths):
        self.options = options
        mirror = Path(paths.mirror).expanduser() if paths.mirror else None
        self._given = Path(paths.data).expanduser() if paths.data else None
        if self._given is None and mirror is not None and (mirror / FOLDER).is_dir():
            self._given = mirror
        self._assets = assets.asset_folder(str(mirror / ASSETS) if mirror else paths.assets)

    def known(self) -> tuple[str, ...]:
        """Names of all tasks."""
        return tuple(TASKS)

    def assets(self, name: str) -> tuple[str, ...]:
        """Assets that the task is read from.

        Raises:
            UserError: if it is in no asset and there is no local folder.
        """
        if self._given is not None or _needs_no_files(self._source(name)):
            return ()
        if name not in OFFLINE or self._source(name) != name:
            raise UserError(
                "the offline assets do not have this task's rows", key="paths.data", found="null", hint=f"or one of {', '.join(OFFLINE)}",
                expected=f"a folder with generative/{self._source(name)} in HELM's layout",
            )  # fmt: skip
        return (ASSET,)

    def rows_to_mirror(self, name: str) -> list[Piece]:
        """The files of all its parts, as rows that one part asks are learned from in no other; none of the assets' tasks."""
        if self._given is None or _needs_no_files(self._source(name)):
            return []
        found = {path for part in known_parts(name, self.data) for path in source_files(name, part, self.data).values()}
        pieces = [local_rows(f"{FOLDER}/{name}", self.data / FOLDER / name, sorted(found))]
        if self._source(name) == DOLLY:
            file = dolly_file(self.data)
            pieces.append(local_rows(f"{FOLDER}/{DOLLY}", file.parent, [file]))
        return pieces

    @cached_property
    def data(self) -> Path:
        """The folder that holds ``generative``; the assets' folder, of which nothing is read, if no task has files."""
        if self._given is not None:
            return self._given
        return offline_folder(self._assets) if any(map(self.assets, self.options.names)) else self._assets

    def parts(self, name: str) -> tuple[str, ...]:
        """The parts of a task that are asked and learned from; none: all whose files are there."""
        return tuple((self.options.parts or {}).get(name, ()))

    def learning_identity(self, name: str) -> dict[str, Any]:
        """What determines the rows that the expert and the router learn from, but for how many are taken."""
        return {**learning_identity(self._source(name), self.parts(name), self.data), **self._cut(name)}

    def exam_identity(self, name: str) -> dict[str, Any]:
        """What determines the rows that are evaluated, and those shown with them, but for how many are taken."""
        return {**identity(name, self.parts(name), self.data), **self._cut(name)}

    def rows(self, name: str) -> config.LearningCounts:
        """How many rows of a task are learned from at most."""
        limit = self.options.rows
        return replace(limit, train=(self.options.train_rows or {}).get(name, limit.train))

    def learning(self, name: str, benchmark: Path) -> LearningRows:
        """The rows that the expert and the router learn from.

        Args:
            benchmark: HELM's folder, of this process alone.

        Raises:
            UserError: as of ``learning_rows``.
        """
        found = learning_rows(
            self._source(name), self.parts(name), self.data, benchmark, self.options.split_seed, self.options.article_words
        )  # fmt: skip
        limit = self.rows(name)
        return LearningRows(found.train[: limit.train], found.validation[: limit.validation], found.provenance)

    def _cut(self, name: str) -> dict[str, int]:
        """What else determines the rows of a task of articles."""
        return {"words": self.options.article_words} if find_task(name).articles else {}

    def _source(self, name: str) -> str:
        return (self.options.learn or {}).get(name, name)


def _needs_no_files(source: str) -> bool:
    return source in TASKS and bool(TASKS[source].generated)
