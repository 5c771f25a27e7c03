"""One-hot weights on the true task: the bound that a perfect router reaches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def oracle_weights(task: int, rows: int, experts: int) -> Tensor:
    """(rows, experts) with 1 in column ``task``."""
    return F.one_hot(torch.full((rows,), task), experts).float()


def one_hot(weights: Tensor) -> Tensor:
    """(rows, experts) with 1 where a row's weight is largest, the first such."""
    return F.one_hot(weights.argmax(-1), weights.shape[-1]).to(weights.dtype)
