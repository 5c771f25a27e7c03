"""What is kept of an encoder's output, and the heads that answer from it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions as EncoderOutput

Features = dict[str, Tensor]
"""Per row, float32: ``first`` (the first token's last state), ``pooled`` (where the encoder has a pooler), ``mean`` (the
mean of the last states over real tokens, which the router reads). Each (rows, hidden)."""


class Head(nn.Module):
    """One task's head: features in, logits out. The architecture's own code runs, its encoder replaced by a replay."""

    def __init__(self, folder: Path, state: Mapping[str, Tensor], num_labels: int, trust_remote_code: bool):
        super().__init__()
        config = AutoConfig.from_pretrained(folder, num_labels=num_labels, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            self.model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trust_remote_code)
        self._replay = _Replay()
        setattr(self.model, self.model.base_model_prefix, self._replay)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model.load_state_dict(dict(state), assign=True)
        self.eval()

    @torch.inference_mode()
    def forward(self, features: Features) -> Tensor:
        """Logits, float32: (rows, num_labels)."""
        device = next(self.parameters()).device
        self._replay.features = {key: value.to(device) for key, value in features.items()}
        return (
            self.model(input_ids=torch.zeros(len(features["first"]), 1, dtype=torch.long, device=device))
            .logits.float()
            .cpu()
        )


class _Replay(nn.Module):
    """Stands in for the encoder and returns features that it computed before."""

    features: Features

    def forward(self, *_, **__) -> EncoderOutput:
        return EncoderOutput(
            last_hidden_state=self.features["first"].unsqueeze(1), pooler_output=self.features.get("pooled")
        )


def pool(output, mask: Tensor, layer: int = -1) -> Features:
    """Features of an encoder's output under an attention mask (rows, tokens); ``mean`` from one of its layers."""
    last = output.last_hidden_state.float()
    states = last if layer == -1 else output.hidden_states[layer].float()
    real = mask.unsqueeze(-1).to(states.dtype)
    features = {"first": last[:, 0], "mean": (states * real).sum(1) / real.sum(1)}
    if getattr(output, "pooler_output", None) is not None:
        features["pooled"] = output.pooler_output.float()
    return {key: value.cpu() for key, value in features.items()}
