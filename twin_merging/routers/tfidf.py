"""A router of token ids, which needs no forward pass: multinomial logistic regression on tf-idf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twin_merging.config import TfidfRouter as Options
from twin_merging.evaluation.selection import choose
from twin_merging.progress import track
from twin_merging.routers import holdout
from twin_merging.routers.holdout import labels
from twin_merging.tasks.base import Task

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Ids = Sequence[Sequence[int]]
"""Rows of token ids, without special tokens."""


class TfidfRouter(nn.Module):
    """w(x) = softmax((W f + b)/temperature), f_i ∝ tf(i, x) · idf_i with ‖f‖ = 1, over the V tokens of the vocabulary.

    tf is how often x has token i, or 1 + ln of that (``sublinear``); idf_i = 1 + ln((1 + n)/(1 + n_i)), where n_i of the n
    rows that trained it have token i, and 0 for a token that none has, so that it is ignored: scikit-learn's definitions.

    Args:
        sublinear: which tf.
        idf: (V).
        weight: Wᵀ, (V, T).
        bias: b, (T).
        temperature: a number.
    """

    sublinear: Tensor
    idf: Tensor
    weight: Tensor
    bias: Tensor
    temperature: Tensor

    def __init__(self, sublinear: bool, idf: Tensor, weight: Tensor, bias: Tensor, temperature: float = 1.0):
        super().__init__()
        self.register_buffer("sublinear", torch.tensor(sublinear))
        self.register_buffer("idf", idf)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("temperature", torch.tensor(temperature))

    def features(self, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(tokens, f) of each row: the ids sorted, (B, S), and f of each, which is 0 but where a token comes first."""
        known = (ids < len(self.idf)) if mask is None else (ids < len(self.idf)) & mask.bool()
        tokens = torch.where(known, ids, -1).sort(-1).values
        first = torch.ones_like(tokens, dtype=torch.bool)
        first[:, 1:] = tokens[:, 1:] != tokens[:, :-1]
        place = first.cumsum(-1) - 1  # of a token among the row's different ones
        counts = torch.zeros_like(tokens).scatter_add(-1, place, torch.ones_like(tokens)).gather(-1, place)
        tf = counts.to(self.idf.dtype)
        if self.sublinear:
            tf = 1 + tf.log()
        known = tokens >= 0
        tokens = tokens.clamp(min=0)
        f = torch.where(first & known, tf * self.idf[tokens], 0)
        return tokens, F.normalize(f, dim=-1)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, T) of token ids (B, S); no vector of length V is made."""
        tokens, f = self.features(ids, mask)
        return F.embedding_bag(tokens, self.weight, per_sample_weights=f, mode="sum") + self.bias

    @torch.inference_mode()
    def weights(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """w(x): (B, T), each row sums to 1.

        Args:
            ids: (B, S).
            mask: (B, S), 0 where an id is padding.
        """
        return (self(ids, mask) / self.temperature).softmax(-1)

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> TfidfRouter:
        """A trained router from its ``state_dict``."""
        parts = {name: state[name] for name in ("idf", "weight", "bias")}
        return cls(bool(state["sublinear"]), **parts, temperature=float(state["temperature"])).eval()

    @classmethod
    def fit(cls, options: Options, ids: list[Ids], tasks: list[Task], seed: int) -> tuple[TfidfRouter, dict[str, Any]]:
        """Fit a router for each C by scikit-learn, each with its temperature, and take the one that makes rows held out likeliest.

        Args:
            options: the router's options.
            ids: for each task, its rows of ``options.source``.
            tasks: the tasks, in the order of the experts.
            seed: unused: nothing is drawn.

        Returns:
            The router, and plain JSON: its accuracy on the rows held out from training, its temperature, its training rows,
            and the choices made.
        """
        parts, held = holdout.split(ids, options.rows, options.holdout)
        rows = [row for part in parts for row in part]
        y, (held_x, held_mask), held_y = labels(parts), padded([row for part in held for row in part]), labels(held)
        start = cls(options.sublinear, inverse_document_frequency(rows), torch.empty(0), torch.empty(0))
        features, by_strength, fitted, temperatures = start.matrix(rows), {}, {}, {}
        for C in track(options.grid, "fit the router", len(options.grid), "values of C"):
            weight, bias = _regression(features, y, len(tasks), C)
            fitted[C] = router = cls(options.sublinear, start.idf, weight, bias, options.temperature or 1.0).eval()
            logits = router(held_x, held_mask)
            if options.temperature is None:  # a stronger penalty leaves smaller logits, for which no C is to be blamed
                temperatures[C] = holdout.calibrate(logits, held_y, tasks, options.source)
                router.temperature.fill_(temperatures[C]["chosen"])
            by_strength[C] = holdout.log_likelihood(logits / router.temperature, held_y)
        choice = choose("C of the router", by_strength, tasks, options.source)
        router = fitted[choice["chosen"]]
        choices = [choice] if options.temperature is not None else [choice, temperatures[choice["chosen"]]]
        logits = router(held_x, held_mask)
        return router, holdout.report(logits, held_y, len(rows), float(router.temperature), choices)

    def matrix(self, rows: Ids) -> csr_array:
        """f of rows, (rows, V), as scipy's sparse matrix."""
        from scipy.sparse import csr_array

        tokens, f = self.features(*padded(rows))
        row, column = f.nonzero(as_tuple=True)
        return csr_array((f[row, column], (row, tokens[row, column])), shape=(len(rows), len(self.idf)))


def padded(rows: Ids) -> tuple[Tensor, Tensor]:
    """Ids and mask, (B, S) each, of rows that are of different lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
    return ids, torch.arange(ids.shape[1]) < lengths.unsqueeze(-1)


def inverse_document_frequency(rows: Ids) -> Tensor:
    """idf, (V), of the tokens of some rows, V being one more than the largest id; 0 for an id that no row has."""
    having = torch.cat([torch.tensor(sorted(set(row)), dtype=torch.long) for row in rows]).bincount(minlength=1)
    return torch.where(having > 0, 1 + ((1 + len(rows)) / (1 + having.double())).log(), 0).float()


def _regression(features: csr_array, y: Tensor, experts: int, C: float) -> tuple[Tensor, Tensor]:
    """Wᵀ (V, T) and b (T) with the least cross-entropy + ‖W‖²/(2 C), float32."""
    from sklearn.linear_model import LogisticRegression

    if experts == 1:
        return torch.zeros(features.shape[1], 1), torch.zeros(1)
    found = LogisticRegression(C=C, max_iter=1000).fit(features, y.numpy())
    weight, bias = torch.from_numpy(found.coef_).T, torch.from_numpy(found.intercept_)
    if experts == 2:  # scikit-learn gives the second one's logit, against 0 of the first
        weight, bias = F.pad(weight, (1, 0)), F.pad(bias, (1, 0))
    return weight.contiguous().float(), bias.float()
