"""The paper's group-wise variant (appendix E, Table 12): one merged model for a group of examples instead of one each."""

from __future__ import annotations

import torch
from torch import Tensor


def group(weights: Tensor, groups: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Put examples with the same top expert into a bin, cluster each bin's logits by k-means, and average within clusters.

    The paper has 20 clusters; a bin with fewer different examples has as many as it has.

    Args:
        weights: w(x), (B, T), whose logarithms are the router's logits but for a constant a row.
        groups: clusters of each bin.
        seed: of k-means.

    Returns:
        Each example's group, (B), and each group's mean weights, (G, T).
    """
    from sklearn.cluster import KMeans

    top, logits = weights.argmax(-1), weights.double().clamp_min(1e-30).log()
    numbers = torch.empty(len(weights), dtype=torch.long)
    means: list[Tensor] = []
    for expert in top.unique():
        rows = (top == expert).nonzero().flatten()
        own = logits[rows]
        count = min(groups, len(own.unique(dim=0)))
        found = torch.from_numpy(KMeans(count, n_init=1, random_state=seed).fit_predict(own.numpy())).long()
        for cluster in found.unique():
            members = rows[found == cluster]
            numbers[members] = len(means)
            means.append(weights[members].mean(0))
    return numbers, torch.stack(means) if means else weights


def group_means(weights: dict[str, Tensor], groups: int, seed: int = 0) -> dict[str, Tensor]:
    """Each row's weights replaced by its group's mean, all tasks' rows being grouped together, as one stream."""
    numbers, means = group(torch.cat(list(weights.values())), groups, seed)
    parts = means[numbers].split([len(rows) for rows in weights.values()])
    return dict(zip(weights, parts, strict=True))
