"""Text generation of a batch whose rows end at different times and by different rules."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

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
        parts: numbers of rows of about the same length: prompts are read part by part, which saves padding. Up to one
            part: all together.
        use: is told the numbers of the rows that the model reads next.
        finished: is told how many rows are newly done.
    """

    def __init__(
        self, rows: Sequence[Row], shared: int, parts: Sequence[list[int]], use: Callable[[Tensor], None],
        finished: Callable[[int], None],
    ):  # fmt: skip
        self.rows, self.shared, self.parts, self.use, self.finished = list(rows), shared, parts, use, finished

    def __call__(self, model: Any, input_ids: Tensor, **given: Any) -> Tensor:
        """Answer all rows; the answers are in them."""
        state = {name: value for name, value in given.items() if name not in UNUSED}
        give_room(state.get("past_key_values"))
        running, numbers = self.rows, torch.arange(len(self.rows))  # on the CPU, whence they index what is anywhere
        if len(self.parts) > 1 and not self.shared and type(state.get("past_key_values")) is DynamicCache:
            outputs = self._read_by_parts(model, input_ids, state)
            self.use(numbers)
        else:
            outputs = model(**self._asked_first(model, input_ids, state), return_dict=True)
        while True:
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
                stay = torch.tensor(left)
                running, input_ids = [running[number] for number in left], input_ids[stay]
                state = {name: _of_rows(value, stay) for name, value in state.items()}
                numbers = numbers[stay]
                self.use(numbers)
            asked = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **state)
            outputs = model(**asked, return_dict=True)

    def _asked_first(self, model: Any, input_ids: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        """What the model is given to read all prompts, after their common beginning if there is one."""
        unread = None
        if self.shared:
            few = {name: state[name] for name in ("past_key_values", "logits_to_keep") if name in state}
            read = model(input_ids=input_ids[:1, : self.shared], use_cache=True, **few).past_key_values
            read.batch_repeat_interleave(len(input_ids))
            state["past_key_values"], unread = read, input_ids.shape[1] - self.shared
        return model.prepare_inputs_for_generation(
            input_ids, next_sequence_length=unread, is_first_iteration=True, **state
        )

    def _read_by_parts(self, model: Any, input_ids: Tensor, state: dict[str, Any]) -> Any:
        """What the model gives for all prompts, each part padded to its own longest and not to that of all."""
        mask, caches, logits = state["attention_mask"], [], []
        for part in self.parts:
            chosen = torch.tensor(part)
            start = int((mask[chosen].sum(0) == 0).sum())  # padding of all its rows
            self.use(chosen)
            own = {name: _places(value, chosen, start, mask.shape) for name, value in state.items()}
            own["past_key_values"] = DynamicCache(config=model.config)
            asked = model.prepare_inputs_for_generation(input_ids[chosen, start:], is_first_iteration=True, **own)
            outputs = model(**asked, return_dict=True)
            caches.append(outputs.past_key_values)
            logits.append(outputs.logits[:, -1:])
        places = torch.tensor([row for part in self.parts for row in part]).argsort()
        for number, layer in enumerate(state["past_key_values"].layers):
            read = [cache.layers[number] for cache in caches]
            layer.update(
                *(_side_by_side(each)[places] for each in ([of.keys for of in read], [of.values for of in read]))
            )
        outputs.logits, outputs.past_key_values = torch.cat(logits)[places], state["past_key_values"]
        return outputs


def common_start(ids: list[list[int]]) -> int:
    """How many tokens all prompts begin with alike, but for the last of each; 0 where a pass of their own does not pay."""
    first, last = min(ids), max(ids)  # of any sorted sequences, these two have least in common
    most = min(map(len, ids)) - 1
    alike = next((place for place in range(most) if first[place] != last[place]), most)
    return alike if len(ids) > 1 and alike >= WORTH_SHARING else 0


WORTH_SHARING = 32
UNUSED = ("logits_processor", "stopping_criteria", "generation_config")


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Keys or values of all parts, (rows, heads, tokens, d), with zeros in the place of padding, which is never read."""
    longest = max(part.shape[-2] for part in parts)
    return torch.cat([pad(part, (0, 0, longest - part.shape[-2], 0)) for part in parts])


def _places(value: Any, rows: Tensor, start: int, shape: torch.Size) -> Any:
    """What is told of each token of a batch, (rows, tokens), of some rows and from a token on."""
    return value[rows, start:] if isinstance(value, Tensor) and value.shape == shape else value


def _of_rows(value: Any, rows: Tensor) -> Any:
    """What ``generate`` keeps between steps, of some rows."""
    if isinstance(value, Tensor) and value.dim() > 1:
        return value[rows]
    if hasattr(value, "batch_select_indices"):  # the cache of keys and values, which changes in place
        value.batch_select_indices(rows)
    return value
