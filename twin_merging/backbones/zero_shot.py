"""Zero-shot heads: the text encoder's embeddings of sentences about each class (Radford et al., 2021, section 3.1.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
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
    found = list((given or {}).get(task, _published().get(task, DEFAULT)))
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
            some = sentences[start : start + AT_ONCE]
            parts.append(model.encode_text(tokenize(some).to(device), normalize=True).float())
            bar.advance(len(some))
    means = torch.cat(parts).view(len(class_names), len(templates), -1).mean(1)
    return F.normalize(means, dim=-1) * model.logit_scale.float().exp()


@cache
def _published() -> dict[str, list[str]]:
    return yaml.safe_load(TEMPLATES.read_text())
