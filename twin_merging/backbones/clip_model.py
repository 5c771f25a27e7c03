"""CLIP's image encoder with a zero-shot head, as a model of transformers' that open_clip's tower is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from open_clip.model import _build_vision_tower
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

from twin_merging.backbones.blocks import blocks_of, watched_inputs


class ClipConfig(PreTrainedConfig):
    """What the image encoder is.

    Args:
        embed_dim: of the space that images and texts share.
        vision: open_clip's ``vision_cfg``.
        quick_gelu: x · σ(1.702 x) in place of the GELU.
    """

    model_type = "open_clip"

    embed_dim: int = 512
    vision: dict[str, Any] | None = None
    quick_gelu: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        vision = self.vision or {"layers": 12, "width": 768, "patch_size": 32, "image_size": 224}
        self.vision = vision
        self.num_hidden_layers, self.hidden_size = vision["layers"], vision["width"]
        self.patch_size, self.image_size = vision["patch_size"], vision["image_size"]
        super().__post_init__(**kwargs)


class LastBlock(ResidualAttentionBlock):
    """open_clip's block, which may answer for the class token alone."""

    alone = False

    def forward(self, q_x: Tensor, *others: Any, **named: Any) -> Tensor:
        """Of tokens (B, S, d), or while ``alone`` of the first of them, (B, 1, d), which attends to all."""
        if not self.alone:
            return super().forward(q_x, *others, **named)
        states = self.ln_1(q_x)
        attended, _ = self.attn(states[:, :1], states, states, need_weights=False)
        first = q_x[:, :1] + self.ls_1(attended)
        return first + self.ls_2(self.mlp(self.ln_2(first)))


class ImageEncoder(nn.Module):
    """open_clip's image tower, its projection included. Its parameters have the names that they have in CLIP: ``visual.*``."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        self.config = config
        self.visual = _build_vision_tower(config.embed_dim, config.vision, config.quick_gelu)
        self.visual.output_tokens = True
        if _embeds_class_token(self.visual):
            self.visual.transformer.resblocks[-1].__class__ = LastBlock

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, tokens: bool = True
    ) -> BaseModelOutputWithPooling:
        """``pooler_output``: the image's embedding, projected and not normalized, (B, d). ``last_hidden_state``: the patches'
        last states after the last norm and before the projection, (B, patches, width). ``hidden_states``: what goes into each
        block, the class token first, (B, 1 + patches, width), then the last states.

        Args:
            tokens: whether more than ``pooler_output`` is wanted. If not, and if the class token makes it, the last block
                computes no other.
        """
        if not tokens:
            with _alone(self.visual):
                return BaseModelOutputWithPooling(pooler_output=self.visual(pixel_values)[0])
        blocks = blocks_of(self) if output_hidden_states else None
        with watched_inputs(blocks or ()) as states:
            pooled, last = self.visual(pixel_values)
        hidden: Any = (*states, last) if output_hidden_states else None
        return BaseModelOutputWithPooling(last_hidden_state=last, pooler_output=pooled, hidden_states=hidden)


def _embeds_class_token(tower: Any) -> bool:
    """Whether nothing but the last block's first token reaches the embedding."""
    return (
        type(tower) is VisionTransformer
        and tower.pool_type == "tok"
        and tower.transformer.batch_first
        and type(tower.transformer.resblocks[-1]) is ResidualAttentionBlock
    )


@contextmanager
def _alone(tower: Any) -> Iterator[None]:
    last = tower.transformer.resblocks[-1]
    last.alone = True  # which no other block than ours asks for
    try:
        yield
    finally:
        last.alone = False


class ClipClassifier(PreTrainedModel):
    """The image encoder and one task's head, which is made from text and does not learn."""

    config_class = ClipConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"

    def __init__(self, config: ClipConfig):
        super().__init__(config)
        self.encoder = ImageEncoder(config)
        self.head = nn.Linear(config.embed_dim, int(config.num_labels or 0), bias=False)
        self.head.requires_grad_(False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: what weights are is open_clip's affair."""

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        """Logits z / ‖z‖ · Wᵀ of the image's embedding z, float32, (B, classes); the mean cross-entropy with ``labels``."""
        image = self.encoder(pixel_values=pixel_values, tokens=not self.training).pooler_output
        with torch.autocast(image.device.type, enabled=False):  # bfloat16 has three digits, and logits are up to 100
            exact = image if image.dtype == torch.float64 else image.float()
            logits = self.head(F.normalize(exact, dim=-1))
        loss: Any = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)
