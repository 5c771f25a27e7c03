"""timm's image encoders with a linear head, as a model of transformers'."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

from twin_merging.backbones.blocks import blocks_of, watched_inputs
from twin_merging.errors import UserError

HEAD_DEVIATION = 0.02
"""Of a new head's weights, as transformers and timm draw them."""


class TimmConfig(PreTrainedConfig):
    """What the image encoder is.

    Args:
        architecture: timm's name.
        model_args: further arguments of ``timm.create_model``.
        seen: timm's data configuration, from which an image's pixels follow.
        hidden_size: of the pooled features.
        num_hidden_layers: blocks that token states go through one after the other; None where there is no such list.
    """

    model_type = "timm"

    architecture: str = "resnet50"
    model_args: dict[str, Any] | None = None
    seen: dict[str, Any] | None = None
    hidden_size: int = 2048
    num_hidden_layers: int | None = None


class TimmEncoder(nn.Module):
    """A model of timm's without classifier, whose parameters have its names: ``timm.*``.

    Args:
        model: which from now on gives (pooled features, last states) when it is called, as whatever takes its place has to be.
    """

    def __init__(self, config: TimmConfig, model: nn.Module):
        super().__init__()
        self.config, self.timm = config, model
        model.forward = partial(_pooled_and_last, model)  # type: ignore[method-assign]

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False) -> BaseModelOutputWithPooling:
        """``pooler_output``: the image's features, as timm pools them for its classifier, (B, d). ``last_hidden_state``: token
        states where the encoder has some, (B, tokens, d), class token and registers included; of a map of features only the
        pooled ones, (B, 1, d). ``hidden_states``: what goes into each block, then the last states.

        Raises:
            UserError: if ``hidden_states`` are asked for where no list of blocks passes token states on.
        """
        blocks: Any = blocks_of(self) if output_hidden_states else ()
        if blocks is None:
            raise no_layers(self.config.architecture)
        with watched_inputs(blocks) as states:
            pooled, last = self.timm(pixel_values)
        tokens = last if is_tokens(last) else pooled.unsqueeze(1)
        hidden: Any = (*states, tokens) if output_hidden_states else None
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=pooled, hidden_states=hidden)


class TimmForImageClassification(PreTrainedModel):
    """An image encoder of timm's and one task's head, a linear layer on the pooled features that is still to be drawn or loaded.

    Args:
        encoder: of timm's; ``nn.Identity`` for a head alone.
    """

    config_class = TimmConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False  # what else the Trainer would give is no encoder's input

    def __init__(self, config: TimmConfig, encoder: nn.Module):
        super().__init__(config)
        self.encoder = TimmEncoder(config, encoder)
        # no name that timm has, at whose ends peft looks
        self.task_head = nn.utils.skip_init(nn.Linear, config.hidden_size, int(config.num_labels or 0))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: what the encoder's weights are is timm's affair, and ``draw_head`` draws the head's."""

    @torch.no_grad()
    def draw_head(self) -> None:
        """Draw a new head."""
        self.task_head.weight.normal_(std=HEAD_DEVIATION)
        self.task_head.bias.zero_()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any) -> ImageClassifierOutput:
        """Logits z Wᵀ + b of the pooled features z, (B, classes); with ``labels`` the mean loss of the problem's type."""
        logits = self.task_head(self.encoder(pixel_values=pixel_values).pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits)


def _pooled_and_last(model: Any, pixel_values: Tensor) -> tuple[Tensor, Any]:
    last = model.forward_features(pixel_values)
    return model.forward_head(last), last


def is_tokens(states: Any) -> TypeGuard[Tensor]:
    """Whether an encoder's last states are a row of tokens an image, (B, tokens, d), and no map of features."""
    return isinstance(states, Tensor) and states.dim() == 3


def no_layers(architecture: str) -> UserError:
    """The error of a router that would read an early layer where there is none."""
    return UserError(
        "no list of blocks passes token states on in this backbone", key="router.layer", found=f"an early layer of {architecture}",
        expected="-1 (the last)",
    )  # fmt: skip
