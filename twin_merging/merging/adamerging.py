"""AdaMerging and AdaMerging++ (Yang et al., ICLR 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from twin_merging.config import AdaMerging
from twin_merging.merging.method import At, static
from twin_merging.merging.ties import Vote, elect, trim
from twin_merging.progress import progress


class Learned(NamedTuple):
    """What is known of a parameter before it merges.

    Args:
        coefficients: λ_t, (T,).
        vote: what trimming and electing go by; None where task vectors are taken as they are.
    """

    coefficients: Tensor
    vote: Vote | None = None


@static(elementwise=True, needs="coefficients", random=False)
def adamerging(base: Tensor, deltas: Tensor, options: AdaMerging, at: At) -> Tensor:
    """θ₀ + Σ λ_t τ_t with a λ for each task, and with ``layer_wise`` for each parameter (Yang et al., section 3.2).

    Args:
        base: θ₀ of one parameter, any shape.
        deltas: τ_t stacked, (T, *base.shape); overwritten.
        at: ``statistic`` is what was ``Learned`` of the parameter.
    """
    coefficients = at.statistic.coefficients.to(deltas.dtype)
    return base + torch.tensordot(coefficients, task_vectors(deltas, at.statistic.vote), 1)


def task_vectors(deltas: Tensor, vote: Vote | None) -> Tensor:
    """τ_t, (T, ...); with a vote (AdaMerging++) trimmed, and 0 where their sign is not the elected one. In place."""
    if vote is None:
        return deltas
    trimmed = trim(deltas, vote.thresholds)
    return trimmed.mul_(trimmed * elect(trimmed, vote.zero_sign) > 0)


class Mixture:
    """θ = θ₀ + Σ λ_t τ_t written into a model's own parameters, and dL/dλ from their gradients.

    The merge is linear in λ, so that dL/dλ_{t,l} = ⟨dL/dθ_l, τ_{t,l}⟩: no graph is kept through the merge.

    Args:
        parameters: the model's, which receive θ; by name.
        deltas: τ_t stacked, (T, *shape), by name; kept in memory.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], deltas: Mapping[str, Tensor]):
        self._layers = [
            (parameters[name], parameters[name].detach().clone().view(-1), stacked.flatten(1))
            for name, stacked in deltas.items()
        ]
        first = self._layers[0][2]
        self.shape, self.new_full = (len(first), len(self._layers)), first.new_full

    @torch.no_grad()
    def write(self, coefficients: Tensor) -> None:
        """Set the parameters by λ (T, L) and clear their gradients."""
        for (parameter, base, deltas), column in zip(self._layers, coefficients.T, strict=True):
            torch.addmv(base, deltas.T, column, out=parameter.view(-1))
            parameter.grad = None

    def gradient(self) -> Tensor:
        """dL/dλ, (T, L), once the parameters have theirs."""
        return torch.stack(
            [
                deltas.new_zeros(len(deltas)) if parameter.grad is None else _products(deltas, parameter.grad)
                for parameter, _, deltas in self._layers
            ],
            dim=1,
        )


def _products(deltas: Tensor, gradient: Tensor) -> Tensor:
    """⟨τ_t, gradient⟩, (T,); of an embedding that says which rows its gradient is on, of those alone."""
    if not gradient.is_sparse:
        return deltas @ gradient.view(-1)
    gradient = gradient.coalesce()
    rows = deltas.view(len(deltas), *gradient.shape)[:, gradient.indices()[0]]
    return rows.flatten(1) @ gradient.values().view(-1)


def learn(mixture: Mixture, backward: Callable[[], float], options: AdaMerging) -> tuple[Tensor, list[float]]:
    """Minimize the answers' entropy over λ by Adam (Yang et al., equation 3).

    Args:
        backward: computes Σ_t of the mean entropy under the mixture's present parameters on its next batches, leaves its
            gradient in them, and returns it.

    Returns:
        λ, (T, L), and the entropy at each step, in nats.
    """
    experts, layers = mixture.shape
    columns = layers if options.granularity == "layer_wise" else 1
    learned = mixture.new_full((experts, columns), options.init).requires_grad_()
    adam, history = torch.optim.Adam([learned], lr=options.lr), []

    def used() -> Tensor:
        return (learned.clamp(0, 1) if options.clamp else learned).expand(experts, layers)

    with progress("learn λ", options.steps, "steps") as bar:
        for _ in range(options.steps):
            coefficients = used()
            mixture.write(coefficients.detach())
            history.append(backward())
            adam.zero_grad()
            coefficients.backward(mixture.gradient())
            adam.step()
            bar.advance()
    return used().detach(), history


def entropy(logits: Tensor) -> Tensor:
    """−Σ_c p_c log p_c of each row's softmax, in nats: (rows, classes) -> (rows,)."""
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)
