"""A matrix of its own for every example of a batch: y_b = (W_s + Σ_t w_t(x_b) Δ_t) x_b + c_s + Σ_t w_t(x_b) δ_t."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twin_merging.dynamic.kernels import adding, block, by_name, each_by_its_own
from twin_merging.dynamic.mixture import Batch, Mixture
from twin_merging.dynamic.plan import Case, Planner
from twin_merging.sparsifiers.svd import Factors


class Parts(NamedTuple):
    """What the experts know of a matrix, in one dtype.

    Args:
        U: (m, T * columns): for each expert the columns S_k U_k, and δ_t as one more where the layer has a bias.
        V: (T * r, n).
        dense: Δ_t, (T, m, n), where there are no factors.
        bias: δ_t, (T, m), if the layer has a bias that merges.
    """

    U: Any
    V: Any
    dense: Any
    bias: Any


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

    def __init__(self, mixture: Mixture, planner: Planner, weight: Factors | Tensor, bias: Tensor | None = None):
        super().__init__()
        self.mixture, self.planner, self.path = mixture, planner, ""
        self._parts: dict[torch.dtype, Parts] = {}
        self._held: Tensor | None = None
        self._asked: tuple | None = None
        found: dict[str, Tensor | None] = dict.fromkeys(Parts._fields)
        if isinstance(weight, Factors):
            T, m, r = weight.U.shape
            left = weight.U * weight.S.unsqueeze(1)
            left = left if bias is None else torch.cat([left, bias.unsqueeze(2)], 2)
            found["U"], found["V"] = left.transpose(0, 1).reshape(m, -1), weight.V.mT.reshape(T * r, -1)
            self.shape = (T, r, m, weight.V.shape[1])
        else:
            found["dense"] = weight.contiguous()
            self.shape = (len(weight), 0, *weight.shape[1:])
        for name, part in {**found, "bias": bias}.items():
            self.register_buffer(name, part)

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
        if len(self._batch.weights) == 1:  # the same for all: one example of all tokens
            tokens = x.reshape(1, -1, x.shape[-1]).contiguous()
        else:
            tokens = (x if x.dim() == 3 else x.reshape(x.shape[0], -1, x.shape[-1])).contiguous()
        asked = (tokens.shape, tokens.dtype, self._batch.pattern)
        if asked != self._asked:
            self._plan(tokens)
            self._asked = asked
        y = self._chosen(tokens, weight, bias)
        return y if tokens is x else y.view(*x.shape[:-1], y.shape[-1])

    def _plan(self, x: Tensor) -> None:
        """Take the method that computes batches of this shape, and the kernel for its products."""
        T, r, m, n = self.shape
        (B, S, _), batch = x.shape, self._batch
        kept, distinct, lasting = batch.pattern
        # matrices of several groups would all be read for each token
        lasting = (
            lasting
            and distinct == 1
            and ((self, 0, x.dtype) in batch.known or batch.held + m * n * x.element_size() <= self.planner.left)
        )
        case = Case(B, S, m, n, T, kept, r, self._is_resident(x.dtype), x.element_size(), distinct, lasting)
        plan = self.planner.choose(case, self.path, x.device.type)
        methods = {
            "factored": self._factored, "gathered": self._gathered, "grouped": self._grouped, "dense": self._by_blocks
        }  # fmt: skip
        self._chosen: Callable[[Tensor, Tensor, Tensor | None], Tensor] = methods[plan]
        self._kernel = self.planner.speeds_of(x.device.type, x.element_size()).kernel
        self._linear, self._add = by_name(self._kernel), adding(self._kernel)

    def _factored(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """g ⊙ Vᵀx of all experts, times U, is added to the static product in place."""
        (B, S, n), (U, V, _, biases) = x.shape, self._in(x.dtype)
        flat = x.view(-1, n)
        inner = self._linear(flat, V)
        if biases is not None:
            inner = F.pad(inner.view(-1, self.shape[1]), (0, 1), value=1.0)
        inner.view(B, S, -1).mul_(self._columns(x.dtype, few=False))
        return self._add(self._linear(flat, weight, bias), inner.view(len(flat), -1), U).view(B, S, -1)

    def ready(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor] | None:
        """What the last batch was computed by, for further ones of the shape (B, ..., n) of ``x``, in as few operations as can be.

        All that stays the same while a sequence is generated is found beforehand: of one token it would take as long as the
        products. None where it does not stay, or where there is nothing to gain.
        """
        if torch.is_autocast_enabled(x.device.type):
            return None
        _, r, m, n = self.shape
        linear, add, shape = self._linear, self._add, (*x.shape[:-1], m)
        if self._chosen == self._grouped and (self, 0, x.dtype) in self._batch.known:
            matrix, own = self.merged(weight, bias)
            return lambda x: linear(x, matrix, own)
        if self._chosen != self._factored or len(self._batch.weights) not in (1, x.numel() // n):
            return None
        (U, V, _, biases), columns = self._in(x.dtype), self._columns(x.dtype, few=False).squeeze(1)

        def product(x: Tensor) -> Tensor:
            flat = x.view(-1, n)
            inner = linear(flat, V)
            if biases is not None:
                inner = F.pad(inner.view(-1, r), (0, 1), value=1.0).view(len(flat), -1)
            return add(linear(flat, weight, bias), inner.mul_(columns), U).view(shape)

        return product

    def _gathered(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Each example's k experts' factors side by side."""
        (_, r, m, n), (B, S, _) = self.shape, x.shape
        # of one token the factors weigh more than the product, and a sequence keeps its experts
        right, left = (
            self.mixture.once((self, x.dtype), lambda _: self._gather(x.dtype)) if S == 1 else self._gather(x.dtype)
        )
        inner = torch.bmm(x, right.mT)
        if self.bias is not None:
            inner = F.pad(inner.view(B, S, -1, r), (0, 1), value=1.0).view(B, S, -1)
        inner.mul_(self._columns(x.dtype, few=True))
        return self._linear(x.view(-1, n), weight, bias).view(B, S, m).baddbmm_(inner, left)

    def _by_blocks(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """W_s + Σ_t w_t Δ_t of some rows and examples at a time, each applied while it is in the cache."""
        (T, _, m, n), (B, S, _) = self.shape, x.shape
        deltas, w = self._deltas(x).view(T, m * n), self._batch.weights.to(x.dtype)
        y, biases, shared = x.new_empty(B, S, m), self._biases(x, bias), weight.reshape(1, m * n)
        rows, examples = block(self._kernel, n)
        made = x.new_empty(min(examples, B), min(rows, m) * n)
        for row in range(0, m, rows):
            high = min(rows, m - row)
            part, these = slice(row * n, (row + high) * n), slice(row, row + high)
            for start in range(0, B, examples):
                some = slice(start, min(start + examples, B))
                own = made[: some.stop - start, : high * n]
                torch.addmm(shared[:, part], w[some], deltas[:, part], out=own)
                some_biases = None if biases is None else biases[some, :, these]
                each_by_its_own(x[some], own.view(-1, high, n), some_biases, y[some, :, these], self._kernel)
        return y

    def _grouped(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """One product for all examples that have the same weights, with the matrix that they share."""
        groups = self._batch.groups
        if len(groups) == 1:
            return self._linear(x, *self.merged(weight, bias))
        y = x.new_empty(*x.shape[:2], self.shape[2])
        for number, group in enumerate(groups):
            y[group.rows] = self._linear(x[group.rows], *self.merged(weight, bias, number))
        return y

    def merged(self, weight: Tensor, bias: Tensor | None, number: int = 0) -> tuple[Any, Any]:
        """W_s + Σ_t w_t Δ_t and c_s + Σ_t w_t δ_t of one group; the matrix is kept while a sequence is generated, within
        ``inference.memory``."""
        (T, r, m, n), (U, V, dense, deltas), dtype = self.shape, self._in(weight.dtype), weight.dtype
        _, experts, w = self._batch.groups[number]
        w = w.to(dtype)

        def find(_: Tensor) -> Tensor:
            if dense is not None:
                return torch.addmv(weight.reshape(-1), dense.view(T, -1)[experts].mT, w).view(m, n)
            left = U.view(m, T, -1)[:, experts, :r] * w[:, None]
            return torch.addmm(weight, left.view(m, -1), V.view(T, r, n)[experts].view(-1, n))

        if deltas is not None:
            own = w @ deltas[experts]
            bias = own if bias is None else own.add_(bias)
        if not self._batch.pattern.lasting or self._batch.pattern.distinct > 1:
            return find(w), bias
        return self.mixture.once((self, number, dtype), find, self.planner.left), bias

    @property
    def _batch(self) -> Batch:
        assert self.mixture.batch is not None
        return self.mixture.batch

    def _gather(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """V and U of each example's k experts, (B, k * r, n) and (B, k * columns, m), the second as others lie in memory."""
        (T, r, m, n), (U, V, _, _) = self.shape, self._in(dtype)
        assert self.mixture.kept is not None
        experts, _ = self.mixture.kept
        right, left = V.view(T, r, n)[experts], U.view(m, T, -1)[:, experts].view(m, len(experts), -1)
        return right.view(len(experts), -1, n), left.permute(1, 2, 0)

    def _columns(self, dtype: torch.dtype, few: bool) -> Tensor:
        """w'(x) as often as an expert has columns of U, (B, 1, columns); of all experts or of the few that an example has."""
        columns = self.shape[1] + (self.bias is not None)

        def find(weights: Tensor) -> Tensor:
            own = weights if not few or self.mixture.kept is None else self.mixture.kept[1]
            return own.to(dtype).repeat_interleave(columns, -1).unsqueeze(1)

        return self.mixture.once((columns, few, dtype), find)

    def _biases(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """c_s + Σ_t w_t δ_t, (B, 1, m); None if there is none."""
        deltas = self._in(x.dtype).bias
        if deltas is None:
            return None if bias is None else bias.expand(len(x), 1, -1)
        own = self._batch.weights.to(x.dtype) @ deltas
        return (own if bias is None else own.add_(bias)).unsqueeze(1)

    def _in(self, dtype: torch.dtype) -> Parts:
        """What the experts know in another dtype, copied once."""
        parts = self._parts.get(dtype)
        if parts is None:
            own = [getattr(self, name) for name in Parts._fields]
            parts = self._parts[dtype] = Parts(*(None if part is None else part.to(dtype) for part in own))
        return parts

    def _apply(self, *args, **kwargs) -> RoutedMatrix:
        """As of any module: it moves to another device or dtype, and copies made before are of no use."""
        self._parts.clear()
        self._held = self._asked = None
        return super()._apply(*args, **kwargs)

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
        if self._held is not None and self._held.dtype == x.dtype:
            return self._held
        made = torch.bmm(U.view(m, T, -1)[..., :r].transpose(0, 1), V.view(T, r, -1))
        if self._held is None and self.planner.keep(made.nbytes):
            self._held = made
        return made
