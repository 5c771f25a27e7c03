"""How a router does where its training went wrong: with wrong task labels, and with rows of a task that it never saw.

Routers are trained anew on what the job's router read of the same validation rows, so that no encoder runs for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from twin_merging.evaluation.calibration import auroc, calibration
from twin_merging.evaluation.routes import confusion

Rows = TypeVar("Rows", Tensor, Sequence[Sequence[int]])
Fit = Callable[[list[Rows], list[int]], Callable[[Rows], Tensor]]
"""Trains a router: what it reads of each task's rows and which tasks these are; gives rows -> w(x), (rows, tasks)."""
HISTOGRAM = 20  # bins of the largest probability, 0 to 1
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LEAST_TASKS = 3  # with one of them left out, two are there to choose from


def flipped(inputs: list[Rows], share: float, seed: int) -> list[Rows]:
    """Give each row, with probability ``share``, the label of another task, each as likely.

    A row that is flipped at one share is flipped, to the same task, at every larger one. A row keeps its place among its
    task's rows, so that those held out are as noisy as the others. ``share`` 0 gives the inputs as they are.

    Args:
        inputs: for each task, what the router reads of its rows.
        seed: of which rows, and where they go.
    """
    if share == 0:
        return inputs
    generator = torch.Generator().manual_seed(seed)
    moved: list[list[tuple[int, int]]] = [[] for _ in inputs]
    for task, rows in enumerate(inputs):
        chance = torch.rand(len(rows), generator=generator)
        other = torch.randint(max(len(inputs) - 1, 1), (len(rows),), generator=generator)
        for row in range(len(rows)):
            wrong = (task + 1 + int(other[row])) % len(inputs)
            moved[wrong if chance[row] < share else task].append((row, task))
    return [_taken(inputs, sorted(places)) for places in moved]


def with_noise(
    fit: Fit, train: list[Rows], test: list[Rows], names: list[str], shares: Sequence[float], seed: int
) -> list[dict[str, Any]]:
    """Routers trained with each of ``shares`` of their rows' task labels wrong, on test rows with right ones.

    Returns:
        Plain JSON a share: ``share``, ``accuracy``, ``by_task`` (name -> accuracy), and of calibration ``ece``, ``confidence``.
    """
    found = []
    for share in shares:
        weigh = fit(flipped(train, share, seed), list(range(len(train))))
        weights = [weigh(rows) for rows in test]
        routed = confusion([each.argmax(-1) for each in weights], len(test))
        calibrated = calibration(*confidence_of(weights))
        found.append(
            {
                "share": share, "accuracy": routed["accuracy"], "by_task": dict(zip(names, routed["by_task"], strict=True)),
                "ece": calibrated["ece"], "confidence": calibrated["confidence"],
            }
        )  # fmt: skip
    return found


def with_new_domain(fit: Fit, train: list[Rows], test: list[Rows], names: list[str]) -> dict[str, Any] | None:
    """Routers that each lack one task: where its test rows go, and whether the largest probability tells that they are new.

    What the router reads is still the shared encoder's, which the task's expert went into; only the router never saw it.

    Returns:
        Plain JSON, task left out -> ``goes_to`` (name -> rows), ``auroc`` of 1 − max_t w_t(x) as a detector of its rows among the other
        tasks' test rows, ``accuracy`` of routing these, and of max_t w_t(x), for ``new`` and ``known`` rows, ``quantiles``
        (5, 25, 50, 75 and 95 %) and ``histogram`` (shares of rows in 20 bins of equal width from 0 to 1). None with fewer than
        three tasks: a router of one class is certain of everything.
    """
    if len(names) < LEAST_TASKS:
        return None
    found = {}
    for left_out, name in enumerate(names):
        others = [index for index in range(len(names)) if index != left_out]
        weigh = fit([train[index] for index in others], others)
        known, new = [weigh(test[index]) for index in others], weigh(test[left_out])
        certainty = {"new": new.amax(-1), "known": torch.cat(known).amax(-1)}
        counts = new.argmax(-1).bincount(minlength=len(others)).tolist()
        found[name] = {
            "rows": len(new), "goes_to": dict(zip([names[index] for index in others], counts, strict=True)),
            "accuracy": confusion([each.argmax(-1) for each in known], len(others))["accuracy"],
            "auroc": auroc((1 - certainty["new"].double()).tolist(), (1 - certainty["known"].double()).tolist()),
            **{kind: _spread(values) for kind, values in certainty.items()},
        }  # fmt: skip
    return found


def confidence_of(weights: Sequence[Tensor]) -> tuple[list[float], list[bool]]:
    """max_t w_t(x) of all rows, and whether that task is the row's own; ``weights`` are each task's rows', (rows, T)."""
    confidence = [value for each in weights for value in each.amax(-1).double().tolist()]
    right = [bool(hit) for task, each in enumerate(weights) for hit in each.argmax(-1) == task]
    return confidence, right


def _spread(values: Tensor) -> dict[str, list[float]]:
    numbers = values.double().numpy()
    counts, _ = np.histogram(numbers, HISTOGRAM, (0.0, 1.0 + 1e-6))
    return {
        "quantiles": [float(each) for each in np.quantile(numbers, QUANTILES)],
        "histogram": [float(count / len(numbers)) for count in counts],
    }


def _taken(inputs: list[Rows], places: list[tuple[int, int]]) -> Any:
    """Rows by (row, task), in this order, in the form that ``inputs`` have."""
    rows = [inputs[task][row] for row, task in places]
    return torch.stack(rows) if isinstance(inputs[0], Tensor) else rows  # type: ignore[arg-type]
