"""A matrix of its own for every example of a batch: y_b = (W_s + Σ_t w_t(x_b) Δ_t) x_b + c_s + Σ_t w_t(x_b) δ_t."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twin_merging.dynamic.mixture import Mixture
from twin_merging.dynamic.plan import Case, Planner
from twin_merging.sparsifiers.svd import Factors

ROWS, EXAMPLES = 128, 16  # of the matrices that the dense plan makes at a time: they stay in the cache


class RoutedMatrix(nn.Module):
    """The knowledge that a matrix and its bias get from T experts, and its products with a batch.

    W_s and c_s stay where they are, with the layer that is routed. All experts' factors lie one after the other, those of
    an expert together, so that one product can take all or some of them.

    Args:
        mixture: where the batch's weights are.
        planner: chooses how the product is computed.
        weight: factors of (T, m, n), or Δ stacked (T, m, n).
        bias: δ stacked (T, m), if the layer has one that merges.
    """

    U: Tensor | None
    V: Tensor | None
    dense: Tensor | None
    bias: Tensor | None

    def __init__(self, mixture: Mixture, planner: Planner, weight: Factors | Tensor, bias: Tensor | None = None):
        super().__init__()
        self.mixture, self.planner, self.path = mixture, planner, ""
        self._held: Tensor | None = None
        self._asked: tuple | None = None
        self._copies: dict[torch.dtype, tuple[Tensor | None, ...]] = {}
        self.register_buffer("bias", bias)
        if isinstance(weight, Factors):
            T, m, r = weight.U.shape
            left = (weight.U * weight.S.unsqueeze(1)).mT.reshape(T * r, m)  # S_k U_k as rows
            self.register_buffer("U", left if bias is None else torch.cat([left, bias]))
            self.register_buffer("V", weight.V.mT.contiguous())
            self.register_buffer("dense", None)
            self.shape = (T, r, m, weight.V.shape[1])
        else:
            self.register_buffer("U", None)
            self.register_buffer("V", None)
            self.register_buffer("dense", weight.contiguous())
            self.shape = (len(weight), 0, *weight.shape[1:])

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(B, ..., m).

        Args:
            x: (B, ..., n).
            weight: W_s, (m, n).
            bias: c_s, (m), or None.
        """
        kind = x.device.type
        if not torch.is_autocast_enabled(kind):
            return self._product(x, weight, bias)
        dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            return self._product(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = 1 if len(self._weights) == 1 else len(x)  # the same weights for all: one example of all tokens
        tokens = x.reshape(rows, -1, x.shape[-1]).contiguous()
        y = self._plan(tokens)(tokens, weight, bias)
        return y.view(*x.shape[:-1], y.shape[-1])

    def _plan(self, x: Tensor) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """The method that computes the batch, which stays the same for batches of one shape."""
        T, r, m, n = self.shape
        kept = self.mixture.kept
        asked = (*x.shape, x.dtype, T if kept is None else kept[0].shape[1])
        if asked != self._asked:
            B, S, _ = x.shape
            case = Case(B, S, m, n, T, asked[-1], r, self._is_resident(x.dtype), x.element_size())
            plan = self.planner.choose(case, self.path, x.device.type)
            self._asked = asked
            self._chosen = {"factored": self._factored, "gathered": self._gathered, "dense": self._by_blocks}[plan]
        return self._chosen

    def _factored(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[g ⊙ Vᵀx, w]·[U S; δ] is added to the static product in place."""
        T, r, m, n = self.shape
        U, V, _, _ = self._in(x.dtype)
        B, S, _ = x.shape
        flat, w, columns = x.view(-1, n), self._weights.to(x.dtype), U.shape[0]
        if columns == T * r:
            inner = F.linear(flat, V.view(T * r, n))
        else:  # T more columns for the biases
            inner = x.new_empty(B * S, columns)
            if torch.compiler.is_compiling():  # which has no products into a part of a tensor
                inner[:, : T * r] = F.linear(flat, V.view(T * r, n))
            else:
                torch.mm(flat, V.view(T * r, n).mT, out=inner[:, : T * r])
            inner.view(B, S, -1)[..., T * r :] = w.unsqueeze(1)
        inner.view(B, S, -1)[..., : T * r].view(B, S, T, r).mul_(w[:, None, :, None])
        return F.linear(flat, weight, bias).addmm_(inner, U).view(B, S, m)

    def _gathered(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Each example's k experts' factors side by side."""
        T, r, m, n = self.shape
        U, V, _, _ = self._in(x.dtype)
        assert self.mixture.kept is not None
        experts, w = self.mixture.kept
        right = V[experts].mul_(w.to(x.dtype)[:, :, None, None]).view(len(x), -1, n)
        left = U[: T * r].view(T, r, m)[experts].view(len(x), -1, m)
        y = self._biases(x, bias)
        y = (
            F.linear(x, weight)
            if y is None
            else y.expand(*x.shape[:2], m).contiguous().view(-1, m).addmm_(x.view(-1, n), weight.mT)
        )
        return y.view(*x.shape[:2], m).baddbmm_(torch.bmm(x, right.mT), left)

    def _by_blocks(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """W_s + Σ_t w_t Δ_t of some rows and examples at a time, each applied while it is in the cache."""
        T, _, m, n = self.shape
        deltas, w = self._deltas(x).view(T, m * n), self._weights.to(x.dtype)
        y, biases = x.new_empty(*x.shape[:2], m), self._biases(x, bias)
        shared = weight.reshape(1, m * n)
        for row in range(0, m, ROWS):
            rows = min(ROWS, m - row)
            part = slice(row * n, (row + rows) * n)
            for start in range(0, len(x), EXAMPLES):
                some = slice(start, start + EXAMPLES)
                own = torch.addmm(shared[:, part], w[some], deltas[:, part]).view(-1, rows, n)
                found = torch.bmm(x[some], own.mT)
                if biases is None:
                    y[some, :, row : row + rows] = found
                else:
                    torch.add(found, biases[some, :, row : row + rows], out=y[some, :, row : row + rows])
        return y

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Any, Any]:
        """W_s + Σ_t w_t Δ_t and c_s + Σ_t w_t δ_t of weights that all examples have."""
        T, r, _, n = self.shape
        U, V, dense, deltas = self._in(weight.dtype)
        w = self._weights[0].to(weight.dtype)
        if deltas is not None:
            bias = w @ deltas if bias is None else torch.addmv(bias, deltas.mT, w)
        if dense is not None:
            return torch.tensordot(w, dense, 1).add_(weight), bias
        left = U[: T * r] * w.repeat_interleave(r).unsqueeze(1)
        return torch.addmm(weight, left.mT, V.view(T * r, n)), bias

    @property
    def _weights(self) -> Tensor:
        assert self.mixture.weights is not None
        return self.mixture.weights

    def _biases(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """c_s + Σ_t w_t δ_t, (B, 1, m); None if there is none."""
        _, _, _, deltas = self._in(x.dtype)
        if deltas is None:
            return None if bias is None else bias.expand(len(x), 1, -1)
        own = self._weights.to(x.dtype) @ deltas
        return (own if bias is None else own.add_(bias)).unsqueeze(1)

    def _in(self, dtype: torch.dtype) -> tuple:
        """U, V, dense deltas and biases in another dtype, copied once."""
        own = (self.U, self.V, self.dense, self.bias)
        first = next(part for part in own if part is not None)
        if dtype == first.dtype:
            return own
        copies = self._copies.get(dtype)
        if copies is None or next(part for part in copies if part is not None).device != first.device:
            copies = self._copies[dtype] = tuple(None if part is None else part.to(dtype) for part in own)
        return copies

    def _is_resident(self, dtype: torch.dtype) -> bool:
        """Whether Δ needs no product of factors, or no other one after this."""
        T, r, m, n = self.shape
        return not r or self._held is not None or T * m * n * dtype.itemsize <= self.planner.left

    def _deltas(self, x: Tensor) -> Tensor:
        """Δ, (T, m, n): as given, kept, or made from the factors."""
        T, r, m, _ = self.shape
        U, V, dense, _ = self._in(x.dtype)
        if dense is not None:
            return dense
        if self._held is not None and self._held.dtype == x.dtype and self._held.device == x.device:
            return self._held
        made = torch.bmm(U[: T * r].view(T, r, m).mT, V)
        if self._held is None and self.planner.keep(made.nbytes):
            self._held = made
        return made
