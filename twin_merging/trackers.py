"""Where scalars, the table and the pictures go besides results.json: nowhere, a JSON-lines file, wandb, TensorBoard.

All trackers are given the same things; ``redact`` hides secrets in the configuration before any of them sees it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from twin_merging import config as schema
from twin_merging.errors import UserError

if TYPE_CHECKING:
    from twin_merging.reporting.tables import Table

# Tokenizers and numbers of tokens are no secrets.
SECRET = re.compile(r"token(?!iz|s\b)|key|passw|secret|credential", re.IGNORECASE)
HIDDEN = "(hidden)"
CHOICES = ("mean", "last")  # of router.token, which is no secret either


class Tracker(Protocol):
    """A tracker is made from its options, the run's folder, the run's name and the run's configuration."""

    def __init__(self, options: schema.Tracker, folder: Path, run_name: str, config: Mapping[str, Any]): ...

    def scalars(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Numbers by name, at a step that may start anew for another expert's names."""

    def table(self, name: str, table: Table) -> None:
        """A table, with its warning."""

    def image(self, name: str, path: Path) -> None:
        """A PNG file."""

    def finish(self) -> None:
        """Write what is not written yet; nothing may follow."""


def redact(value: Any) -> Any:
    """A copy of ``value`` in which what is named like a token, key, password or secret reads ``(hidden)``.

    Both entries of mappings and overrides of the form ``name=value`` have names.
    """
    if isinstance(value, Mapping):
        return {
            name: HIDDEN if SECRET.search(str(name)) and item not in (None, *CHOICES) else redact(item)
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redact(item) for item in value]
    if isinstance(value, str) and "=" in value:
        name, item = value.split("=", 1)
        if SECRET.search(name) and item not in CHOICES:
            return f"{name}={HIDDEN}"
    return value


class NoTracker:
    """Keeps nothing."""

    def __init__(self, options: schema.Tracker, folder: Path, run_name: str, config: Mapping[str, Any]):
        pass

    def scalars(self, values: Mapping[str, float], step: int | None = None) -> None:
        pass

    def table(self, name: str, table: Table) -> None:
        pass

    def image(self, name: str, path: Path) -> None:
        pass

    def finish(self) -> None:
        pass


class JsonlTracker:
    """``metrics.jsonl`` in the run's folder: one JSON object a line, whole on disk as soon as it is logged."""

    def __init__(self, options: schema.Tracker, folder: Path, run_name: str, config: Mapping[str, Any]):
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = (self._folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._write("config", name=run_name, config=redact(config))

    def scalars(self, values: Mapping[str, float], step: int | None = None) -> None:
        self._write("scalars", step=step, values={name: _json_number(value) for name, value in values.items()})

    def table(self, name: str, table: Table) -> None:
        self._write("table", name=name, title=table.title, rows=table.records(), notes=table.notes)

    def image(self, name: str, path: Path) -> None:
        path = Path(path)
        inside = path.is_relative_to(self._folder)
        self._write("image", name=name, path=str(path.relative_to(self._folder) if inside else path))

    def finish(self) -> None:
        self._file.close()

    def _write(self, kind: str, **fields: Any) -> None:
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "kind": kind, **fields}
        self._file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        self._file.flush()


class WandbTracker:
    """Weights & Biases; offline unless told otherwise, its files in ``wandb/`` in the run's folder.

    Raises:
        UserError: if mode is online and there is no login, or the server refuses.
    """

    def __init__(self, options: schema.Tracker, folder: Path, run_name: str, config: Mapping[str, Any]):
        import wandb

        self._wandb: Any = wandb
        self._stepped: set[str] = set()
        Path(folder).mkdir(parents=True, exist_ok=True)
        try:
            # Asked first: wandb.init would ask for a key on the terminal, and a job on a cluster would wait for ever.
            if options.mode == "online" and not wandb.login(prompt=False):
                raise wandb.errors.UsageError("no login: run `wandb login` or set WANDB_API_KEY")
            self._run = self._wandb.init(
                project=options.project,
                entity=options.entity,
                name=run_name,
                config=redact(config),
                dir=folder,
                mode=options.mode,
                reinit="create_new",
                # What wandb collects by itself holds the command line, and so whatever secret stands in it.
                settings=wandb.Settings(console="off", silent=True, x_disable_meta=True, disable_git=True),
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"wandb could not start ({error})",
                key="tracker.mode",
                found=options.mode,
                hint="tracker.mode=offline needs no login and no server; upload later with: wandb sync",
            ) from error

    def scalars(self, values: Mapping[str, float], step: int | None = None) -> None:
        if step is None:
            self._run.log(dict(values))
            return
        # wandb's own step only grows and drops what comes late; ours starts anew for each expert.
        for name in values.keys() - self._stepped:
            self._run.define_metric(name, step_metric="step")
        self._stepped.update(values)
        self._run.log({**values, "step": step})

    def table(self, name: str, table: Table) -> None:
        records = table.records()
        columns = list(records[0]) if records else []
        rows = [list(record.values()) for record in records]
        self._run.log({name: self._wandb.Table(columns=columns, data=rows)})

    def image(self, name: str, path: Path) -> None:
        self._run.log({name: self._wandb.Image(str(path))})

    def finish(self) -> None:
        self._run.finish()


class TensorboardTracker:
    """TensorBoard event files in ``tensorboard/`` in the run's folder; the table is its Markdown text."""

    def __init__(self, options: schema.Tracker, folder: Path, run_name: str, config: Mapping[str, Any]):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "TensorBoard is not installed",
                key="tracker",
                found="tensorboard",
                hint="pip install 'twin_merging[tensorboard]', or tracker=jsonl",
            ) from error
        self._writer = SummaryWriter(log_dir=str(Path(folder) / "tensorboard"))
        text = json.dumps(redact(config), indent=2, ensure_ascii=False, default=str)
        self._writer.add_text("config", f"# {run_name}\n```json\n{text}\n```")

    def scalars(self, values: Mapping[str, float], step: int | None = None) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)

    def table(self, name: str, table: Table) -> None:
        from twin_merging.reporting.formats import to_markdown

        self._writer.add_text(name, to_markdown(table))

    def image(self, name: str, path: Path) -> None:
        import numpy
        from PIL import Image

        with Image.open(path) as picture:
            self._writer.add_image(name, numpy.asarray(picture.convert("RGB")), dataformats="HWC")

    def finish(self) -> None:
        self._writer.close()


def _json_number(value: float) -> float | str:
    """JSON has no NaN and no infinity: those become words, so that a diverged loss stays visible."""
    return value if math.isfinite(value) else str(float(value))
