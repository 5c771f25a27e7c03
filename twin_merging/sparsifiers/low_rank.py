"""Exact singular value decompositions of sums of low-rank products, without the dense matrix (paper appendix A)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from twin_merging.sparsifiers.svd import Factors


def svd_of_sums(left: Sequence[Tensor], right: Sequence[Tensor], weights: Tensor, r: int) -> Factors:
    """The top r singular triplets of Σ_t w_kt B_t A_t for each of K rows of weights.

    With the factors side by side, B = Q_B R_B and Aᵀ = Q_A R_A, the sum is Q_B (R_B diag(w_k) R_Aᵀ) Q_Aᵀ: one QR
    decomposition a side serves all rows, and each row takes the SVD of a matrix of at most R = Σ r_t rows and columns.

    Twin-Merging of LoRA experts θ₀ + B_t A_t, where B_t holds α/r₀ too: with the shared expert θ₀ + λ Σ B_s A_s the
    weights are λ·1 for its delta and e_t − λ·1 for v_t.

    Args:
        left: B_t, (m, r_t) each.
        right: A_t, (r_t, n) each.
        weights: (K, T).
        r: as many triplets are given, and never more than min(m, n, R), which is all.

    Returns:
        Factors of K matrices, in the dtype of the widest of ``left`` and ``right``, float32 at least.
    """
    ranks = torch.tensor([factor.shape[1] for factor in left], device=weights.device)
    columns, rows = torch.cat(list(left), 1), torch.cat([factor.mT for factor in right], 1)
    wide = torch.promote_types(torch.promote_types(columns.dtype, rows.dtype), torch.float32)
    Q_left, R_left = torch.linalg.qr(columns.to(wide))
    Q_right, R_right = torch.linalg.qr(rows.to(wide))
    repeated = weights.repeat_interleave(ranks, dim=1).to(wide)  # (K, R)
    U, S, Vt = torch.linalg.svd((R_left * repeated.unsqueeze(1)) @ R_right.mT, full_matrices=False)
    return Factors(Q_left @ U[..., :r], S[:, :r], Q_right @ Vt[:, :r].mT)
