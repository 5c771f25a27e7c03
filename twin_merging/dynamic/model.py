"""Twin-Merging's encoder: θ*(x) = θ_s + Σ_t w_t(x) v_t for each example of a batch, exactly, in one pass."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from twin_merging.dynamic.layers import Delta, Mixture, route


class TwinMergedModel(nn.Module):
    """An encoder whose weights differ from example to example (paper section 3.3, equation 3).

    Args:
        shared: the encoder with θ_s. It is changed in place: its layers become routed ones.
        exclusive: v_t by parameter name, factored or whole.
    """

    def __init__(self, shared: nn.Module, exclusive: Mapping[str, Delta]):
        super().__init__()
        self.mixture = Mixture()
        self.encoder = route(shared, exclusive, self.mixture)

    def forward(self, *args, weights: Tensor | None = None, **inputs):
        """The encoder's output under each example's own weights.

        Args:
            weights: w(x), (B, T); None evaluates the shared expert.
        """
        self.mixture.weights = weights
        try:
            return self.encoder(*args, **inputs)
        finally:
            self.mixture.weights = None
