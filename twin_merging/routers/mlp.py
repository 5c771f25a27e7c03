"""The paper's router (section 3.3 and appendix D.2): three linear layers on the shared expert's mean token state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twin_merging.config import MlpRouter as Options
from twin_merging.evaluation.selection import Choice, choose
from twin_merging.progress import track
from twin_merging.tasks.base import VALIDATION, Task


class MlpRouter(nn.Module):
    """w(x) = softmax(R(f)/temperature), f the mean of the shared expert's last token states.

    R is d → 2d → 2d → T with BatchNorm, LeakyReLU and dropout between the layers.

    Args:
        options: the router's options.
        hidden: d.
        experts: T.
    """

    temperature: Tensor
    layer: Tensor

    def __init__(self, options: Options, hidden: int, experts: int):
        super().__init__()
        self.options = options
        wide = 2 * hidden
        self.layers = nn.Sequential(
            nn.Linear(hidden, wide), nn.BatchNorm1d(wide), nn.LeakyReLU(), nn.Dropout(options.dropout),
            nn.Linear(wide, wide), nn.BatchNorm1d(wide), nn.LeakyReLU(), nn.Dropout(options.dropout),
            nn.Linear(wide, experts),
        )  # fmt: skip
        self.register_buffer("temperature", torch.tensor(1.0 if options.temperature is None else options.temperature))
        self.register_buffer("layer", torch.tensor(options.layer))  # whose states the features are

    def forward(self, features: Tensor) -> Tensor:
        """Logits (rows, T) of features (rows, d)."""
        return self.layers(features)

    @torch.inference_mode()
    def weights(self, features: Tensor) -> Tensor:
        """w(x): (rows, T), each row sums to 1."""
        self.eval()
        return (self(features.float()) / self.temperature).softmax(-1)

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> MlpRouter:
        """A trained router from its ``state_dict``."""
        first, last = state["layers.0.weight"], state["layers.8.bias"]
        router = cls(Options(), first.shape[1], len(last))
        router.load_state_dict(dict(state))
        return router.eval()

    @classmethod
    def fit(
        cls, options: Options, features: list[Tensor], tasks: list[Task], seed: int
    ) -> tuple[MlpRouter, dict[str, Any]]:
        """Train a router by cross-entropy on the identity of the task.

        Args:
            features: for each task, the shared expert's mean token states of its validation rows, (rows, d).
            tasks: the tasks, in the order of the experts.
            seed: of initialization, dropout and order.

        Returns:
            The router of the best epoch, and plain JSON: its accuracy on the rows held out from training, its temperature,
            its training rows, and the choices made.
        """
        torch.manual_seed(seed)
        (x, y), (held_x, held_y) = _split(options, features)
        router = cls(options, x.shape[1], len(tasks))
        optimizer = torch.optim.Adam(router.parameters(), lr=options.lr)
        by_epoch, states = {}, {}
        for epoch in track(range(1, options.epochs + 1), "train the router", options.epochs, "epochs"):
            router.train()
            for rows in torch.randperm(len(x)).split(options.batch_size):
                if len(rows) == 1:  # BatchNorm has no variance of one row
                    continue
                optimizer.zero_grad()
                F.cross_entropy(router(x[rows]), y[rows]).backward()
                optimizer.step()
            by_epoch[epoch] = _log_likelihood(router, held_x, held_y)
            states[epoch] = {name: tensor.clone() for name, tensor in router.state_dict().items()}
        choices = [choose("epoch of the router", by_epoch, tasks, VALIDATION)]
        router.load_state_dict(states[choices[0]["chosen"]])
        if options.temperature is None:
            choices.append(_calibrate(router, held_x, held_y, tasks))
        report = {
            "holdout_accuracy": float((router.weights(held_x).argmax(-1) == held_y).float().mean()),
            "temperature": float(router.temperature),
            "train_rows": len(x),
            "holdout_rows": len(held_x),
            "choices": choices,
        }
        return router, report


def _split(options: Options, features: list[Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(x, y) to train on and (x, y) held out, the same share of each task."""
    parts: tuple[list, list, list, list] = ([], [], [], [])
    for task, rows in enumerate(features):
        rows = rows[: options.rows].float()
        held = max(1, round(options.holdout * len(rows)))
        for part, chosen in ((0, rows[held:]), (2, rows[:held])):
            parts[part].append(chosen)
            parts[part + 1].append(torch.full((len(chosen),), task))
    x, y, held_x, held_y = (torch.cat(part) for part in parts)
    return (x, y), (held_x, held_y)


@torch.inference_mode()
def _log_likelihood(router: MlpRouter, x: Tensor, y: Tensor) -> float:
    router.eval()
    return -float(F.cross_entropy(router(x), y))


@torch.inference_mode()
def _calibrate(router: MlpRouter, x: Tensor, y: Tensor, tasks: list[Task]) -> Choice:
    """Set the temperature, of 2^-3 to 2^3, under which the held-out rows are most likely (Guo et al., 2017)."""
    router.eval()
    logits = router(x)
    grid = [2 ** (step / 4) for step in range(-12, 13)]
    scores = {value: -float(F.cross_entropy(logits / value, y)) for value in grid}
    choice = choose("temperature of the router", scores, tasks, VALIDATION)
    router.temperature.fill_(choice["chosen"])
    return choice
