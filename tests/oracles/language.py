"""What a language model thinks of given answers: row by row, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


@torch.no_grad()
def nats_a_token(model: Any, tokenizer: Any, rows: Sequence[tuple[str, str]]) -> float:
    """The mean loss of the tokens of completions and of what ends a text, over (prompt, completion)."""
    total, count = 0.0, 0
    for prompt, completion in rows:
        asked = tokenizer(prompt)["input_ids"] or [tokenizer.eos_token_id]  # an empty prompt: what ends a text
        answer = [*tokenizer(completion)["input_ids"], tokenizer.eos_token_id]
        logits = model.eval().double()(torch.tensor([asked + answer])).logits[0, len(asked) - 1 : -1]
        total -= float(logits.log_softmax(-1)[torch.arange(len(answer)), answer].sum())
        count += len(answer)
    return total / count
