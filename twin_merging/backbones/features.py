"""What is kept of an encoder's output, and the heads that answer from it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions as EncoderOutput

Features = dict[str, Tensor]
"""Per row, float32: ``first`` (the first token's last state), ``pooled`` (where the encoder has a pooler), ``mean`` (the
mean of a layer's states over real tokens, or over the places of a feature map, which the router reads), each (rows, hidden); ``first_and_rest`` in their place
where heads read the first token's last state and the mean of the others', (rows, 2 hidden). Of CLIP, ``pooled`` is the
image's embedding, and there is no ``first``."""


class Head(nn.Module):
    """One task's head: features in, logits out. The architecture's own code runs, its encoder replaced by a replay.

    Args:
        model: a whole classifier, which loses its encoder.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model, self._replay = model, _Replay()
        setattr(model, model.base_model_prefix, self._replay)

    @classmethod
    def of(
        cls, classifier: Any, folder: Path, state: Mapping[str, Tensor], num_labels: int, trust_remote_code: bool
    ) -> Head:
        """A head with weights of its own, ready to answer, of the architecture that a folder's config names.

        Args:
            classifier: transformers' Auto class of whole classifiers.
        """
        config = AutoConfig.from_pretrained(folder, num_labels=num_labels, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            head = cls(classifier.from_config(config, trust_remote_code=trust_remote_code))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            head.model.load_state_dict(dict(state), assign=True)
        return head.eval()

    @torch.inference_mode()
    def forward(self, features: Features) -> Tensor:
        """Logits, float32, on the CPU: (rows, num_labels)."""
        device = next(self.parameters()).device
        return self.logits({key: value.to(device) for key, value in features.items()}).float().cpu()

    def logits(self, features: Features) -> Tensor:
        """Logits as the head gives them, with a gradient: (rows, num_labels). ``features`` are on its own device."""
        self._replay.features, read = features, features[read_by_head(features)]
        unread = torch.zeros(len(read), 1, dtype=torch.long, device=read.device)
        return self.model(**{self.model.main_input_name: unread}).logits


class _Replay(nn.Module):
    """Stands in for the encoder and returns features that it computed before."""

    features: Features

    def forward(self, *_, **__) -> EncoderOutput:
        if "first_and_rest" in self.features:
            states = self.features["first_and_rest"].unflatten(1, (2, -1))
            return EncoderOutput(last_hidden_state=states, pooler_output=states[:, 0])
        first, pooled = self.features.get("first"), self.features.get("pooled")
        return EncoderOutput(last_hidden_state=None if first is None else first.unsqueeze(1), pooler_output=pooled)


def router_input(states: Tensor, mask: Tensor | None) -> Features:
    """Of token states (rows, tokens, hidden), what routers read: their mean over real tokens."""
    return {"mean": token_state(states, mask, "mean")}


def token_state(states: Tensor, mask: Tensor | None, token: str) -> Tensor:
    """Of token states (rows, tokens, hidden) one a row, (rows, hidden) in float32; a feature map's places are its tokens.

    Args:
        mask: which tokens are real; padding may be on either side. None: all.
        token: ``mean`` over the real ones, or the ``last`` of them.
    """
    states = tokens_of(states)
    if mask is None:
        return states[:, -1].float() if token == "last" else states.float().mean(1)
    if token == "last":
        return states[torch.arange(len(states), device=states.device), mask.long().cumsum(1).argmax(1)].float()
    real = mask.unsqueeze(-1).float()
    return (states.float() * real).sum(1) / real.sum(1)


def tokens_of(states: Tensor) -> Tensor:
    """(rows, tokens, d): token states as they are, of a feature map (rows, d, height, width) what is at each place."""
    return states.flatten(2).mT if states.dim() == 4 else states


def head_input(output) -> Features:
    """Of an encoder's output, what heads read: on its device, with its gradient. Of a feature map that is what its pooler gives."""
    pooled: Any = getattr(output, "pooler_output", None)
    if output.last_hidden_state.dim() == 4:
        return {"pooled": pooled.flatten(1).float()}
    first = {"first": output.last_hidden_state[:, 0].float()}
    return first if pooled is None else {**first, "pooled": pooled.float()}


def read_by_head(features: Features) -> str:
    """Which of the features a head reads: ``first_and_rest``, or ``pooled`` where the encoder has a pooler, else ``first``."""
    return next((name for name in ("first_and_rest", "pooled") if name in features), "first")
