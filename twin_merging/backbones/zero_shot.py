"""Zero-shot heads: the text encoder's embeddings of sentences about each class (Radford et al., 2021, section 3.1.4)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from twin_merging.errors import UserError
from twin_merging.progress import progress

TEMPLATES = Path(__file__).with_name("clip_templates.yaml")
DEFAULT = ["a photo of a {}."]
AT_ONCE = 256  # sentences


def templates_of(task: str, given: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """A task's sentences: those of ``backbone.templates``, else CLIP's own, else ``DEFAULT``.

    Raises:
        UserError: if one has no place for the class.
    """
    found = list((given or {}).get(task, published().get(task, DEFAULT)))
    if not found or any("{}" not in sentence for sentence in found):
        raise UserError(
            "a sentence has no place for the class", key=f"backbone.templates.{task}", found=found, expected="such as 'a photo of a {}.'"
        )  # fmt: skip
    return found


@torch.inference_mode()
def zero_shot_head(
    model: Any, tokenize: Any, class_names: Sequence[str], templates: Sequence[str], label: str
) -> Tensor:
    """W of (classes, d): W_c = exp(logit_scale) · n(Σ_p n(t_pc)), where n(x) = x / ‖x‖ and t_pc embeds sentence p about c.

    Args:
        model: CLIP with its text encoder.
        tokenize: sentences -> token ids, (sentences, tokens).
        class_names: an underscore in them is a space.
    """
    sentences = [sentence.replace("{}", name.replace("_", " ")) for name in class_names for sentence in templates]
    device, parts = model.logit_scale.device, []
    with progress(label, len(sentences), "sentences") as bar:
        for start in range(0, len(sentences), AT_ONCE):
            tokens = tokenize(sentences[start : start + AT_ONCE])
            parts.append(embed(model, tokens.to(device)).float())
            bar.advance(len(tokens))
    means = torch.cat(parts).view(len(class_names), len(templates), -1).mean(1)
    return F.normalize(means, dim=-1) * model.logit_scale.float().exp()


def embed(model: Any, tokens: Tensor) -> Tensor:
    """Normalized embeddings of sentences, (sentences, d), from their tokens (sentences, L), 0 behind each one's end.

    Where a token sees none that follow it and the sentence is its last token's state, what is behind the longest sentence's
    end is not computed: it is most of the context.
    """
    used = int(tokens.any(0).nonzero().max()) + 1
    if used < tokens.shape[1] and isinstance(model, open_clip.CLIP) and _reads_ends(model):
        model, tokens = _shorter(model, used), tokens[:, :used]
    return model.encode_text(tokens, normalize=True)


def _reads_ends(model: open_clip.CLIP) -> bool:
    return model.attn_mask is not None and model.text_pool_type in ("argmax", "eos")


def _shorter(model: open_clip.CLIP, length: int) -> open_clip.CLIP:
    """The same weights, for sentences of ``length`` tokens."""
    short = copy.copy(model)
    positions = nn.Parameter(model.positional_embedding[:length], requires_grad=False)
    short._parameters = {**model._parameters, "positional_embedding": positions}
    short._buffers = {**model._buffers, "attn_mask": model.attn_mask[:length, :length]}
    return short


@cache
def published() -> dict[str, list[str]]:
    """CLIP's own sentences by task."""
    return yaml.safe_load(TEMPLATES.read_text())
