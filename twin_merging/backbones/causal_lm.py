"""Any Hugging Face language model: it goes on with prompts, and gives the states that routers read.

All of it merges, the output layer too. Batches are padded on the left, so that every prompt ends where its answer begins.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from twin_merging.backbones.blocks import states_at
from twin_merging.backbones.decoding import WORTH_SHARING, Decoding, Row, common_start
from twin_merging.backbones.features import token_state
from twin_merging.backbones.lengths import by_length
from twin_merging.backbones.loading import check_loaded, load_model, load_tokenizer
from twin_merging.backbones.products import faster_products
from twin_merging.config import CausalLM
from twin_merging.errors import UserError
from twin_merging.progress import Progress, progress
from twin_merging.ranks import is_spread
from twin_merging.tasks.generation import Request


class CausalLMBackbone:
    """Loads a language model, goes on with prompts, and gives their states.

    Args:
        options: the backbone's options.
        folder: the pre-trained model.
        device: where it computes, if no ``device_map`` says so.
        autocast: bfloat16 in matrix products.
    """

    def __init__(self, options: CausalLM, folder: Path, device: torch.device, autocast: bool):
        self.options, self.folder, self.device, self.autocast = options, folder, device, autocast

    @cached_property
    def tokenizer(self):
        """The pre-trained model's tokenizer; where it has no token for padding, the one that ends a text pads."""
        tokenizer = load_tokenizer(self.folder, self.options.trust_remote_code)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def context(self) -> int | None:
        """Tokens that a prompt and its answer may have together; None: any number."""
        if self.options.context is not None:
            return self.options.context
        config = AutoConfig.from_pretrained(self.folder, trust_remote_code=self.options.trust_remote_code)
        return getattr(config.get_text_config(), "max_position_embeddings", None)

    def load(self, source: Path | None = None, training: bool = False, **settings: Any) -> PreTrainedModel:
        """A model from a folder, by default θ₀.

        Args:
            training: it is going to learn: on one device, without ``device_map``.
            settings: further arguments of ``from_pretrained``.

        Raises:
            UserError: if the folder's weights are damaged, lack a tensor, or are of another shape.
        """
        source, where = source or self.folder, None if training else self.options.device_map
        dtype = "auto" if self.options.dtype == "auto" else getattr(torch, self.options.dtype)
        placed = {} if where is None else {"device_map": where}
        model, report = load_model(
            AutoModelForCausalLM, source, self.options.trust_remote_code, **{"dtype": dtype, **placed, **settings}
        )
        check_loaded(model, report, source, model.state_dict())
        if "device_map" in {**placed, **settings} or (training and is_spread()):
            return model  # one that is spread moves piece by piece: no device holds all of it
        return model.to(self.device)

    def model_with(self, weights: Mapping[str, Tensor]) -> PreTrainedModel:
        """A model of θ₀'s architecture with these weights in place of its own, of all parameters or of some.

        They are read one by one, so that a mapping may make each when it is asked for.
        """
        model = self.load()
        own = model.state_dict()
        with torch.no_grad():
            for name in weights:
                own[name].copy_(weights[name])
        return model

    def tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts as the model reads them, with the token that begins a text if it has one."""
        start = self.tokenizer.bos_token_id
        empty = [self.tokenizer.eos_token_id if start is None else start]
        return [ids or empty for ids in self.tokenizer(list(prompts))["input_ids"]] if prompts else []

    @torch.inference_mode()
    def complete(
        self, model: Any, requests: Sequence[Request], batch_size: int, label: str,
        weights: Tensor | None = None, seed: int = 0, ends: Collection[int] | None = None,
    ) -> list[str]:  # fmt: skip
        """The answers, without the prompts and up to where the first stop begins; "" where a text ends at once.

        A batch answers as each prompt alone does. Requests of most new tokens come first, and of those the longest prompts;
        prompts that begin alike, as those with the same examples do, are in one batch and that beginning is read once.

        Args:
            model: a language model, with or without an adapter, or a ``TwinMergedModel``.
            label: of the progress.
            weights: of a ``TwinMergedModel``: each request's expert weights, (rows, T), which hold for its whole answer.
                Without them its router reads the prompts; without a router the shared expert answers.
            seed: of the requests with a temperature; the same prompt is answered alike whatever else is asked.
            ends: the tokens that end any answer; None: the model's own.

        Raises:
            UserError: before anything is answered, if a prompt and its answer may be longer than the context.
        """
        ids = self.tokenize([request.prompt for request in requests])
        self._check_lengths(requests, ids)
        ends = self._ends(model) if ends is None else ends
        rows = [Row(request, self.tokenizer, ends, seed) for request in requests]
        order = _order(requests, ids)
        with progress(label, len(rows), "rows") as bar, self.answering(model):
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                given = None if weights is None else weights[batch]
                self._decode(model, [rows[row] for row in batch], [ids[row] for row in batch], given, bar)
        return [row.text() for row in rows]

    @torch.inference_mode()
    def states(
        self, model: Any, requests: Sequence[Request], batch_size: int, label: str, layer: int = -1, token: str = "mean"
    ) -> Tensor:
        """What a router reads of each prompt, (rows, d), float32 on the CPU.

        Args:
            model: as of ``complete``; of a ``TwinMergedModel`` its shared expert.
            layer: whose states: -1 the last, 0 the embeddings. The model runs no further than to it.
            token: ``mean`` over the prompt's tokens, or ``last``, the kind that the authors' code reads.
        """
        ids = self.tokenize([request.prompt for request in requests])
        self._check_lengths(requests, ids)
        body: Any = language_model(model).base_model
        batches = by_length([len(row) for row in ids], batch_size, body.device)
        parts: list[Tensor] = []
        with progress(label, len(ids), "rows") as bar, self.answering(model):
            for rows in batches:
                batch = self._pad([ids[row] for row in rows], "right", body.device)
                if layer == -1:
                    states = body(**batch, use_cache=False).last_hidden_state
                else:
                    states = states_at(
                        body, layer, lambda batch=batch, **asked: body(**batch, use_cache=False, **asked)
                    )
                mask = batch["attention_mask"].to(states.device)
                parts.append(token_state(states, mask, token).cpu())
                bar.advance(len(mask))
        order = [row for rows in batches for row in rows]
        return torch.cat(parts)[torch.tensor(order).argsort()]

    def _decode(self, model: Any, rows: list[Row], ids: list[list[int]], weights: Tensor | None, bar: Progress) -> None:
        own = language_model(model)
        if weights is None and getattr(model, "router", None) is not None:
            weights = model.route(**self._pad(ids, "right", own.device))
        routed = {} if weights is None else {"weights": weights.to(own.device)}
        alike = weights is None or bool((weights == weights[0]).all())
        can_share = _can_share(own)
        shared = common_start(ids) if alike and can_share else 0
        lengths = [len(row) for row in ids]
        parts = by_length(lengths, len(ids), own.device) if can_share and not shared else []

        def use(chosen: Tensor) -> None:
            if routed:
                model.mixture.weights = routed["weights"][chosen]

        model.generate(
            **self._pad(ids, "left", own.device, shared), **routed, do_sample=False, num_beams=1,
            max_new_tokens=max(row.request.max_new_tokens for row in rows), pad_token_id=self.tokenizer.pad_token_id,
            custom_generate=Decoding(rows, shared, parts, use, bar.advance),
        )  # fmt: skip

    def _pad(self, ids: list[list[int]], side: str, device: torch.device, start: int = 0) -> dict[str, Tensor]:
        """Token ids and attention mask, (rows, tokens); padding on the left comes after the first ``start`` tokens."""
        longest, pad = max(map(len, ids)), self.tokenizer.pad_token_id or 0
        batch, mask = torch.full((len(ids), longest), pad), torch.zeros(len(ids), longest, dtype=torch.long)
        for number, row in enumerate(ids):
            moved = longest - len(row) if side == "left" else 0
            places = [place if place < start else place + moved for place in range(len(row))]
            batch[number, places], mask[number, places] = torch.tensor(row), 1
        return {"input_ids": batch.to(device), "attention_mask": mask.to(device)}

    def _check_lengths(self, requests: Sequence[Request], ids: Sequence[Sequence[int]]) -> None:
        for number, (request, prompt) in enumerate(zip(requests, ids, strict=True)):
            if self.context is not None and len(prompt) + request.max_new_tokens > self.context:
                raise UserError(
                    f"prompt {number} is too long", key="backbone.context",
                    found=f"{len(prompt)} tokens and up to {request.max_new_tokens} of its answer",
                    expected=f"{self.context} together, at most",
                    hint=f"fewer or shorter examples; it begins with {request.prompt[:60]!r}",
                )  # fmt: skip

    def _ends(self, model: Any) -> set[int]:
        """The tokens that end a text: what the tokenizer says, and the model's generation settings."""
        settings = getattr(language_model(model), "generation_config", None)
        own = getattr(settings, "eos_token_id", None)
        named = own if isinstance(own, (list, tuple)) else [own]
        return {int(token) for token in (*named, self.tokenizer.eos_token_id) if token is not None}

    @contextmanager
    def answering(self, model: nn.Module) -> Iterator[None]:
        """Evaluate a model, which goes back to training if it was."""
        training = model.training
        model.eval()
        try:
            with (
                torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast),
                faster_products(model, self.autocast, fixed=True),
            ):
                yield
        finally:
            model.train(training)


def language_model(model: Any) -> PreTrainedModel:
    """The plain model in an adapted or a merged one."""
    if isinstance(model, PreTrainedModel):
        return model
    return model.get_base_model() if hasattr(model, "get_base_model") else model.encoder


def _order(requests: Sequence[Request], ids: Sequence[Sequence[int]]) -> list[int]:
    """Row numbers such that a batch ends at about once, begins alike if any rows do, and pads little."""
    starts = [tuple(row[:WORTH_SHARING]) for row in ids]
    rows_of = Counter(starts)

    def place(row: int) -> tuple:
        return -requests[row].max_new_tokens, starts[row] if rows_of[starts[row]] > 1 else (), -len(ids[row])

    return sorted(range(len(ids)), key=place)


def _can_share(model: PreTrainedModel) -> bool:
    """Whether what was read of a prompt can be gone on with after padding: whole attention, positions that are told."""
    layers = DynamicCache(config=model.config).layers
    told = "position_ids" in inspect.signature(model.forward).parameters
    return told and bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
