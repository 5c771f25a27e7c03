"""Processes that make the rows of training ahead of the model, as torch's ``DataLoader`` starts them."""

from __future__ import annotations

import multiprocessing
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import TrainerCallback

from twin_merging.ahead import processors
from twin_merging.backbones.rows import set_epoch
from twin_merging.errors import UserError

MOST = 8
IN_FLIGHT = 3  # batches a worker: torch asks for two ahead, and one is on its way
SHARED = Path("/dev/shm")  # what workers give batches through, where there is one; some containers have 64 MB
START = "fork" if sys.platform == "linux" else None  # how; None: as the system does by default


def workers_for(asked: int | None, row_bytes: int, batch_size: int) -> int:
    """How many processes make rows; 0: the one that trains.

    Args:
        asked: ``finetune.workers``; None: all processors but one, up to ``MOST``, that half of the free shared memory serves,
            where a process is forked. Elsewhere each would take seconds to start, for every pass.
        row_bytes: ``made_bytes`` of the rows.
    """
    if multiprocessing.current_process().daemon:  # which may start none
        return 0
    if asked is not None:
        return asked
    if not row_bytes or START is None:
        return 0
    most = min(MOST, processors() - 1)
    if SHARED.is_dir():
        most = min(most, shutil.disk_usage(SHARED).free // 2 // (IN_FLIGHT * batch_size * row_bytes))
    return most


class EpochCallback(TrainerCallback):
    """Tells the rows which epoch begins. accelerate's loaders do not where several processes share a batch."""

    def __init__(self, rows):
        self.rows = rows

    def on_epoch_begin(self, args, state, control, **_):
        steps = state.max_steps // state.num_train_epochs
        set_epoch(self.rows, state.global_step // steps)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise a worker's ``UserError`` as the one that it was: torch's says where it was caught, with a traceback."""
    try:
        yield
    except UserError as error:
        begin, name, said = error.message.rpartition(f"{UserError.__module__}.{UserError.__name__}: ")
        if not (name and begin.startswith("Caught UserError in DataLoader worker")):
            raise
        raise UserError(said.strip()) from error
