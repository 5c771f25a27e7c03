"""The paper's router (section 3.3 and appendix D.2): three linear layers on the shared expert's mean token state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twin_merging.config import MlpRouter as Options
from twin_merging.evaluation.selection import Choice, choose, refuse_test
from twin_merging.progress import track
from twin_merging.routers import holdout
from twin_merging.routers.holdout import labels
from twin_merging.tasks.base import Task


class MlpRouter(nn.Module):
    """w(x) = softmax(R(f)/temperature), f the mean of the shared expert's token states, or the last token's.

    R is d → 2d → 2d → T with BatchNorm, LeakyReLU and dropout between the layers.

    Args:
        options: the router's options.
        hidden: d.
        experts: T.
    """

    temperature: Tensor
    layer: Tensor
    reads_last: Tensor

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
        self.register_buffer("reads_last", torch.tensor(options.token == "last"))  # and of which tokens

    def forward(self, features: Tensor) -> Tensor:
        """Logits (rows, T) of features (rows, d)."""
        return self.layers(features)

    @torch.inference_mode()
    def logits(self, features: Tensor) -> Tensor:
        """Logits (rows, T) without dropout, before the temperature."""
        self.eval()
        return self(features.float())

    @torch.inference_mode()
    def weights(self, features: Tensor) -> Tensor:
        """w(x): (rows, T), each row sums to 1."""
        return (self.logits(features) / self.temperature).softmax(-1)

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> MlpRouter:
        """A trained router from its ``state_dict``."""
        first, last = state["layers.0.weight"], state["layers.8.bias"]
        router = cls(Options(), first.shape[1], len(last))
        router.load_state_dict({"reads_last": torch.tensor(False), **state})  # files of before it was an option lack it
        return router.eval()

    @property
    def token(self) -> str:
        """Of which tokens' states it reads: their ``mean``, or the ``last``."""
        return "last" if self.reads_last else "mean"

    @classmethod
    def fit(
        cls, options: Options, features: list[Tensor], tasks: list[Task], seed: int
    ) -> tuple[MlpRouter, dict[str, Any]]:
        """Train a router by cross-entropy on the identity of the task.

        Args:
            features: for each task, the shared expert's token states of its rows of ``options.source``, (rows, d).
            tasks: the tasks, in the order of the experts.
            seed: of initialization, dropout and order.

        Returns:
            The router of the best epoch, or of the last by ``options.selection``, and plain JSON: its accuracy on the rows held out from training, its temperature,
            its training rows, and the choices made.
        """
        torch.manual_seed(seed)
        parts, held = holdout.split(features, options.rows, options.holdout)
        x, y, held_x, held_y = torch.cat(parts).float(), labels(parts), torch.cat(held).float(), labels(held)
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
            by_epoch[epoch] = holdout.log_likelihood(router.logits(held_x), held_y)
            states[epoch] = {name: tensor.clone() for name, tensor in router.state_dict().items()}
        choices: list[Choice] = []
        if options.selection == "last":
            refuse_test("rows of the router", tasks, options.source)
        else:
            choices.append(choose("epoch of the router", by_epoch, tasks, options.source))
            router.load_state_dict(states[choices[0]["chosen"]])
        logits = router.logits(held_x)
        if options.temperature is None:
            choices.append(holdout.calibrate(logits, held_y, tasks, options.source))
            router.temperature.fill_(choices[-1]["chosen"])
        return router, holdout.report(logits, held_y, len(x), float(router.temperature), choices)
