"""Any Hugging Face encoder with a classification or regression head a task.

The architecture's own ``ForSequenceClassification`` class is used throughout, so that published checkpoints load as they
are. Its base model is the encoder, which merges; everything else is the head, which does not.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from twin_merging.backbones.blocks import states_at
from twin_merging.backbones.features import Features, Head, pool, router_input
from twin_merging.backbones.loading import check_loaded, load_model, load_tokenizer
from twin_merging.backbones.products import faster_products
from twin_merging.config import SequenceClassifier
from twin_merging.errors import UserError
from twin_merging.progress import progress
from twin_merging.tasks.base import Task


@dataclass
class Tokens:
    """Token ids of a split's rows, unpadded."""

    rows: list[dict[str, list[int]]]

    def by_length(self) -> list[int]:
        """Row numbers from the longest to the shortest, so that a batch pads little and memory peaks at once."""
        return sorted(range(len(self.rows)), key=lambda row: -len(self.rows[row]["input_ids"]))


class SequenceClassifierBackbone:
    """Loads, splits, encodes and answers for one architecture.

    Args:
        options: the backbone's options.
        folder: the pre-trained model.
        device: where it computes.
        autocast: bfloat16 in matrix products.
    """

    def __init__(self, options: SequenceClassifier, folder: Path, device: torch.device, autocast: bool):
        self.options, self.folder, self.device, self.autocast = options, folder, device, autocast

    @cached_property
    def tokenizer(self):
        """The pre-trained model's tokenizer."""
        return load_tokenizer(self.folder, self.options.trust_remote_code)

    def tokenize(self, texts: Sequence[tuple[str, ...]]) -> Tokens:
        """Token ids, cut to ``max_length``, of rows with one text each or two."""
        columns = [list(column) for column in zip(*texts, strict=True)]
        encoded = self.tokenizer(*columns, truncation=True, max_length=self.options.max_length)
        return Tokens([{key: values[row] for key, values in encoded.items()} for row in range(len(texts))])

    def load(
        self, source: Path, num_labels: int, regression: bool = False, new_head: bool = False, **settings: float
    ) -> PreTrainedModel:
        """Encoder and head from a folder, in float32.

        Args:
            source: a Hugging Face model folder.
            num_labels: the head's outputs.
            new_head: draw the head anew; the folder's own, if it has one, is not wanted.
            settings: values of the model's config.json that are replaced.

        Raises:
            UserError: if the folder's weights are damaged, lack a tensor, or are of another shape.
        """
        problem = "regression" if regression else "single_label_classification"
        model, report = load_model(
            AutoModelForSequenceClassification, source, self.options.trust_remote_code, num_labels=num_labels,
            problem_type=problem, dtype=torch.float32, **self._attention(), **settings,
        )  # fmt: skip
        self._check_report(model, report, source, new_head)
        if new_head:
            self._draw_head(model, report)
        return model.to(self.device)

    def new_expert(self, task: Task, dropout: float | None = None) -> PreTrainedModel:
        """θ₀ with a new head for ``task``, for fine-tuning; with every dropout probability as given, if one is."""
        changed = {} if dropout is None else self._all_dropouts(dropout)
        return self.load(self.folder, task.num_labels, task.kind == "regression", new_head=True, **changed)

    def _all_dropouts(self, value: float) -> dict[str, float]:
        """Architectures name these settings differently, but all of them dropout."""
        settings = AutoConfig.from_pretrained(self.folder, trust_remote_code=self.options.trust_remote_code).to_dict()
        return {name: value for name, old in settings.items() if "dropout" in name and isinstance(old, float)}

    def encoder(self, model: PreTrainedModel) -> PreTrainedModel:
        """The part that merges."""
        return getattr(model, model.base_model_prefix)

    @cached_property
    def _skeleton(self) -> PreTrainedModel:
        return self.encoder(self.load(self.folder, num_labels=2, new_head=True))

    def encoder_with(self, weights: Mapping[str, Tensor]) -> PreTrainedModel:
        """An encoder of this architecture, of its own, with these weights."""
        encoder = copy.deepcopy(self._skeleton)
        encoder.load_state_dict(weights)
        return encoder

    def head_state(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """The part that does not merge: every parameter outside the encoder."""
        prefix = model.base_model_prefix + "."
        return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(prefix)}

    def head(self, state: Mapping[str, Tensor], num_labels: int) -> Head:
        """The head of one task, ready to answer from features."""
        return Head.of(self.folder, state, num_labels, self.options.trust_remote_code).to(self.device)

    @torch.inference_mode()
    def encode(
        self,
        encoder: nn.Module,
        tokens: Tokens,
        batch_size: int,
        label: str,
        weights: Tensor | None = None,
        layer: int = -1,
        first_block: int | None = None,
        for_router: bool = False,
    ) -> Features:
        """Features of every row, batched by length.

        Args:
            encoder: a static encoder, or a ``TwinMergedModel`` if ``weights`` are given.
            weights: each row's expert weights, (rows, T).
            layer: whose states ``mean`` is taken of: -1 the last, 0 the embeddings.
            first_block: the first block that the weights are for; None: all.
            for_router: give ``mean`` alone, for which the encoder runs no further than to its layer.
        """
        encoder.to(self.device).eval()
        order, parts = tokens.by_length(), []
        asked = {} if layer == -1 else {"output_hidden_states": True}
        with progress(label, len(order), "rows") as bar, faster_products(encoder, self.autocast, fixed=True):
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = self.tokenizer.pad([tokens.rows[row] for row in rows], return_tensors="pt").to(self.device)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                    chosen = {} if weights is None else {"weights": weights[rows].to(self.device), "start": first_block}
                    run = partial(encoder, **batch, **chosen)
                    mask = batch["attention_mask"]
                    if for_router:
                        mean = router_input(states_at(encoder, layer, run), mask)["mean"].cpu()
                        parts.append({"mean": mean})
                    else:
                        parts.append(pool(run(**asked), mask, layer))
                bar.advance(len(rows))
        back = torch.tensor(order).argsort()
        return {key: torch.cat([part[key] for part in parts])[back] for key in parts[0]}

    def check_head_reads_first_token(self, model: PreTrainedModel) -> None:
        """Check that the head's answer follows from ``Features``, as it does where a head reads the first token.

        Raises:
            UserError: if it reads more, so that this architecture's heads cannot be kept apart from the encoder.
        """
        batch = self.tokenizer(["a short text", "another one that is longer"], padding=True, return_tensors="pt").to(
            self.device
        )
        with torch.inference_mode():
            model.eval()
            features = pool(self.encoder(model)(**batch), batch["attention_mask"])
            head = self.head(self.head_state(model), int(model.config.num_labels or 0))
            difference = (head(features) - model(**batch).logits.cpu()).abs().max().item()
        if difference > 1e-4:
            raise UserError(
                "the heads of this architecture read more than the first token, which is not supported",
                key="backbone.pretrained", found=type(model).__name__, expected="such as BERT, RoBERTa, ELECTRA, DeBERTa",
            )  # fmt: skip

    def _attention(self) -> dict[str, str]:
        """On a CPU the fused attention's backward pass takes several times as long as the plain one's."""
        return {"attn_implementation": "eager"} if self.device.type == "cpu" else {}

    def _draw_head(self, model: PreTrainedModel, report: dict) -> None:
        """Replace a head that the folder happened to hold by a newly drawn one."""
        head = self.head_state(model)
        if set(head) <= {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}:
            return
        drawn = AutoModelForSequenceClassification.from_config(
            model.config, trust_remote_code=self.options.trust_remote_code
        )
        model.load_state_dict({name: drawn.state_dict()[name] for name in head}, strict=False)

    def _check_report(self, model: PreTrainedModel, report: dict, source: Path, new_head: bool) -> None:
        prefix = model.base_model_prefix + "."
        needed = [name for name in model.state_dict() if not new_head or name.startswith(prefix)]
        # a bare encoder may come without the pooler that a classifier adds; only then is it initialized
        poolers = [name for name in needed if new_head and ".pooler." in name and name in report["missing_keys"]]
        _initialize_alike(model, poolers)
        check_loaded(model, report, source, set(needed) - set(poolers))


def _initialize_alike(model: nn.Module, names: Sequence[str]) -> None:
    """Give parameters that a checkpoint lacks the same values every time, since θ₀ must be one encoder for all experts."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for name in names:
            parameter = model.get_parameter(name)
            parameter.normal_(std=0.02) if parameter.dim() > 1 else parameter.zero_()
