"""Dynamic merging as the paper describes it: a model of its own for each example."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from twin_merging.sparsifiers.svd import Factors


def multiplied_out(delta: Factors | Tensor) -> Tensor:
    """v_t of all experts, (T, *shape), in float64: factors as the sum of their triplets."""
    if isinstance(delta, Tensor):
        return delta.double()
    T, r = delta.S.shape
    whole = torch.zeros(T, delta.U.shape[1], delta.V.shape[1], dtype=torch.float64)
    for t in range(T):
        for k in range(r):
            whole[t] += delta.S[t, k].double() * torch.outer(delta.U[t, :, k].double(), delta.V[t, :, k].double())
    return whole


def outputs(
    module: nn.Module, exclusive: dict[str, Factors | Tensor], weights: Tensor, *inputs: Tensor
) -> list[Tensor]:
    """Run ``module`` once an example, each time with θ_s + Σ_t w_t v_t loaded, all in float64.

    Args:
        module: holds θ_s; it is left as it is.
        exclusive: v_t by parameter name.
        weights: (B, T).
        inputs: the module's arguments, (B, ...) each.

    Returns:
        Each example's output, (1, ...).
    """
    deltas = {name: multiplied_out(delta) for name, delta in exclusive.items()}
    shared = {
        name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in module.state_dict().items()
    }
    results = []
    for example in range(len(weights)):
        state = {name: tensor.clone() for name, tensor in shared.items()}
        for name, delta in deltas.items():
            for t in range(weights.shape[1]):
                state[name] += weights[example, t].double() * delta[t]
        own = copy.deepcopy(module).double()
        own.load_state_dict(state)
        output = own(
            *(
                given[example : example + 1].double() if given.is_floating_point() else given[example : example + 1]
                for given in inputs
            )
        )
        results.append(output if isinstance(output, Tensor) else output.last_hidden_state)
    return results
