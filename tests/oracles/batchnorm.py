"""BatchNorm's statistics by their definitions, a channel after the other, in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn


def statistics(encoder: nn.Module, batches: Sequence[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    """The mean over batches of each batch's mean and unbiased variance of what goes into every BatchNorm, by buffer name.

    Each batch is normalized by its own mean and biased variance on its way.
    """
    own, seen = copy.deepcopy(encoder).double().eval(), {}
    for name, layer in own.named_modules():
        if type(layer).__name__.startswith("BatchNorm"):
            seen[name] = []
            layer.forward = partial(_normalized, layer, seen[name])
    with torch.no_grad():
        for batch in batches:
            own(**{name: tensor.double() for name, tensor in batch.items()})
    found = {}
    for name, each in seen.items():
        found[f"{name}.running_mean"] = np.mean([means for means, _ in each], 0)
        found[f"{name}.running_var"] = np.mean([variances for _, variances in each], 0)
    return found


def _normalized(layer: nn.Module, seen: list, x: Tensor) -> Tensor:
    y, means, variances = x.clone(), [], []
    for channel in range(x.shape[1]):
        values = x[:, channel].numpy()
        mean = values.sum() / values.size
        squares = ((values - mean) ** 2).sum()
        means.append(mean)
        variances.append(squares / (values.size - 1))
        normal = (x[:, channel] - mean) / np.sqrt(squares / values.size + layer.eps)
        y[:, channel] = normal * layer.weight[channel] + layer.bias[channel]
    seen.append((means, variances))
    return y
