"""Text generation of a batch whose rows end at different times and by different rules."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from twin_merging.backbones.kv_cache import give_room
from twin_merging.tasks.generation import Request


class Row:
    """One request as it is answered.

    Args:
        request: what is asked for.
        tokenizer: which makes text of tokens.
        ends: the tokens that end any answer.
        seed: of sampling. The same prompt under the same seed is answered alike in whichever batch it is.
    """

    def __init__(self, request: Request, tokenizer: Any, ends: Collection[int], seed: int):
        self.request, self.tokenizer, self.ends = request, tokenizer, ends
        self.ids: list[int] = []
        self.done = False
        if request.temperature > 0:
            digest = hashlib.sha256(f"{seed} {request.prompt}".encode()).digest()
            self.chance = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def draw(self, logits: Tensor) -> int:
        """A token drawn by its probability, from logits (vocabulary)."""
        shares = torch.softmax(logits.float().cpu() / self.request.temperature, 0)
        return int(torch.multinomial(shares, 1, generator=self.chance))

    def add(self, token: int) -> None:
        """Go on with a token, after which the answer may be done."""
        if token in self.ends:
            self.done = True
            return
        self.ids.append(token)
        stopped = bool(self.request.stop) and len(self.text()) < len(self._whole())
        self.done = stopped or len(self.ids) >= self.request.max_new_tokens

    def text(self) -> str:
        """The answer so far, up to where the first of its stops begins."""
        whole = self._whole()
        return whole[: min((place for stop in self.request.stop if (place := whole.find(stop)) >= 0), default=None)]

    def _whole(self) -> str:
        return self.tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class Decoding:
    """How transformers' ``generate`` decodes a batch (its ``custom_generate``): each row by its own rules.

    Only what a ``Request`` says holds: a model's own sampling settings (top-p, repetition penalty) do not.

    Rows that are done leave the batch once they are half of it. So at most half of the work is for nothing, and a batch is
    made anew at most log₂ B times, which costs a copy of its cache and, of a merged model, what is kept for its weights.

    Args:
        rows: of the batch, in its order.
        shared: how many tokens all prompts begin with: they are read once, not once a row.
        leave: is told which of the rows that were still there stay.
        finished: is told how many rows are newly done.
    """

    def __init__(
        self, rows: Sequence[Row], shared: int, leave: Callable[[Tensor], None], finished: Callable[[int], None]
    ):
        self.rows, self.shared, self.leave, self.finished = list(rows), shared, leave, finished

    def __call__(self, model: Any, input_ids: Tensor, **given: Any) -> Tensor:
        """Answer all rows; the answers are in them."""
        state = {name: value for name, value in given.items() if name not in UNUSED}
        running, unread = self.rows, None
        give_room(state.get("past_key_values"))
        if self.shared:
            few = {name: state[name] for name in ("past_key_values", "logits_to_keep") if name in state}
            read = model(input_ids=input_ids[:1, : self.shared], use_cache=True, **few).past_key_values
            read.batch_repeat_interleave(len(input_ids))
            state["past_key_values"], unread = read, input_ids.shape[1] - self.shared
        asked = model.prepare_inputs_for_generation(
            input_ids, next_sequence_length=unread, is_first_iteration=True, **state
        )
        while True:
            outputs = model(**asked, return_dict=True)
            state = model._update_model_kwargs_for_generation(outputs, state)
            logits = outputs.logits[:, -1]
            tokens = logits.argmax(-1).tolist()
            for number, row in enumerate(running):
                if row.request.temperature > 0:
                    tokens[number] = row.draw(logits[number])
            input_ids = torch.cat([input_ids, torch.tensor(tokens, device=input_ids.device).unsqueeze(1)], 1)
            open_before = [not row.done for row in running]
            for row, token, is_open in zip(running, tokens, open_before, strict=True):
                if is_open:
                    row.add(token)
            self.finished(sum(open_before) - sum(not row.done for row in running))
            left = [number for number, row in enumerate(running) if not row.done]
            if not left:
                return input_ids
            if 2 * len(left) <= len(running):
                stay = torch.tensor(left)  # on the CPU, whence it indexes what lies on several devices
                running, input_ids = [running[number] for number in left], input_ids[stay]
                state = {name: _of_rows(value, stay) for name, value in state.items()}
                self.leave(stay)
            asked = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **state)


def common_start(ids: list[list[int]]) -> int:
    """How many tokens all prompts begin with alike, but for the last of each; 0 where a pass of their own does not pay."""
    first, last = min(ids), max(ids)  # of any sorted sequences, these two have least in common
    most = min(map(len, ids)) - 1
    alike = next((place for place in range(most) if first[place] != last[place]), most)
    return alike if len(ids) > 1 and alike >= WORTH_SHARING else 0


WORTH_SHARING = 32
UNUSED = ("logits_processor", "stopping_criteria", "generation_config")


def _of_rows(value: Any, rows: Tensor) -> Any:
    """What ``generate`` keeps between steps, of some rows."""
    if isinstance(value, Tensor) and value.dim() > 1:
        return value[rows]
    if hasattr(value, "batch_select_indices"):  # the cache of keys and values, which changes in place
        value.batch_select_indices(rows)
    return value
