"""Hugging Face encoders with a classification or regression head a task, whatever their rows are.

The architecture's own classifier class is used throughout, so that published checkpoints load as they are. Its base model is
the encoder, which merges; everything else is the head, which does not.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from twin_merging.backbones.blocks import states_at
from twin_merging.backbones.features import Features, Head, head_input, router_input
from twin_merging.backbones.loading import check_loaded, load_model
from twin_merging.backbones.products import faster_products
from twin_merging.backbones.rows import Inputs, Row, taken
from twin_merging.backbones.sources import read_config
from twin_merging.errors import UserError
from twin_merging.progress import progress
from twin_merging.tasks.base import TRAIN, Task

Batch = dict[str, Tensor]
Remember = Callable[[str, str, Any, Callable[[], Tensor]], Tensor]
"""Finds or makes a tensor: what it is and of which task, both for people; plain JSON that determines it besides θ₀; its maker."""


class EncoderBackbone(ABC):
    """Loads, splits, encodes and answers for one architecture.

    Args:
        options: the backbone's options.
        folder: the pre-trained model.
        device: where it computes.
        autocast: bfloat16 in matrix products.
    """

    classifier: ClassVar[Any]
    """transformers' Auto class of encoders with a head."""
    remember: Remember
    """What is made for many experts; by default it is made anew each time."""

    def __init__(self, options: Any, folder: Path, device: torch.device, autocast: bool):
        self.options, self.folder, self.device, self.autocast = options, folder, device, autocast
        self.remember = lambda what, label, determined_by, make: make()

    def __reduce__(self):
        """Other processes get what a backbone is made of, and no model."""
        return type(self), (self.options, self.folder, self.device, self.autocast)

    # --- rows ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def inputs(self, task: Task, split: str, rows: Sequence[int] | None = None) -> Inputs:
        """Rows of a task's split, by default all, as the model reads them."""

    def training_inputs(self, task: Task, seed: int) -> Inputs:
        """Rows of a task's training split as the model reads them while it learns."""
        return self.inputs(task, TRAIN)

    def made_bytes(self, task: Task) -> int:
        """What a training row takes up in a batch if it is work to make it, as of an image that is decoded; else 0."""
        return 0

    @abstractmethod
    def collate(self, rows: Sequence[Row]) -> Batch:
        """Rows side by side on the CPU, padded where they have to be; with ``labels`` and ``task`` if they have them."""

    @abstractmethod
    def example(self) -> Inputs:
        """Two rows that no task has."""

    @abstractmethod
    def save_reader(self, folder: Path) -> None:
        """Write what makes the model's input of a row."""

    def batch(self, inputs: Inputs, rows: Sequence[int]) -> Batch:
        """These rows side by side, on the backbone's device."""
        together = self.collate(taken(inputs.rows, rows))
        return {name: tensor.to(self.device) for name, tensor in together.items()}

    def batches(self, inputs: Inputs, parts: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """``batch`` of each part, in their order."""
        return (self.batch(inputs, rows) for rows in parts)

    def head_input(self, output: Any) -> Features:
        """Of an encoder's output what its heads read: on its device, with its gradient."""
        return head_input(output)

    def embedded(self, encoder: nn.Module, batch: Batch) -> Features:
        """``head_input`` of these rows, by a pass that need not compute more."""
        return self.head_input(encoder(**batch))

    # --- models -------------------------------------------------------------------------------------------------------

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
            self.classifier, source, self.options.trust_remote_code, num_labels=num_labels,
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

    def foreign_expert(self, source: Path, task: Task) -> PreTrainedModel | None:
        """An expert in a form that the architecture's classifier does not load, with a head made for ``task``; None of one in its own.

        Raises:
            UserError: if it cannot be read, or is of another architecture than the base's.
        """
        return None

    def about(self, source: Path) -> dict[str, Any]:
        """The configuration of an expert that others trained, by transformers' keys: ``model_type``, and ``id2label`` if it has one."""
        return read_config(source)

    def _all_dropouts(self, value: float) -> dict[str, float]:
        """Architectures name these settings differently, but all of them dropout."""
        settings = AutoConfig.from_pretrained(self.folder, trust_remote_code=self.options.trust_remote_code).to_dict()
        return {name: value for name, old in settings.items() if "dropout" in name and isinstance(old, float)}

    def encoder(self, model: PreTrainedModel) -> PreTrainedModel:
        """The part that merges."""
        return getattr(model, model.base_model_prefix)

    @cached_property
    def _plain(self) -> PreTrainedModel:
        """θ₀ with a head of no task."""
        return self.load(self.folder, num_labels=2, new_head=True)

    @cached_property
    def _skeleton(self) -> PreTrainedModel:
        return self.encoder(self._plain)

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
        return Head.of(self.classifier, self.folder, state, num_labels, self.options.trust_remote_code).to(self.device)

    # --- answers ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode(
        self,
        encoder: nn.Module,
        inputs: Inputs,
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
        order, parts = longest_first(inputs), []
        asked = {} if layer == -1 else {"output_hidden_states": True}
        with progress(label, len(order), "rows") as bar, faster_products(encoder, self.autocast, fixed=True):
            chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
            for rows, batch in zip(chunks, self.batches(inputs, chunks), strict=True):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                    chosen = {} if weights is None else {"weights": weights[rows].to(self.device), "start": first_block}
                    run = partial(encoder, **batch, **chosen)
                    mask = batch.get("attention_mask")
                    if for_router:
                        mean = router_input(states_at(encoder, layer, run), mask)["mean"].cpu()
                        parts.append({"mean": mean})
                    else:
                        parts.append(self._pool(run(**asked), mask, layer))
                bar.advance(len(rows))
        back = torch.tensor(order).argsort()
        return {key: torch.cat([part[key] for part in parts])[back] for key in parts[0]}

    def check_head_reads_first_token(self, model: PreTrainedModel) -> None:
        """Check that the head's answer follows from ``Features``, as it does where a head reads the first token, or with it the rest.

        Raises:
            UserError: if it reads more, so that this architecture's heads cannot be kept apart from the encoder.
        """
        batch = self.batch(self.example(), [0, 1])
        with torch.inference_mode():
            model.eval()
            features = self._pool(self.encoder(model)(**batch), batch.get("attention_mask"))
            head = self.head(self.head_state(model), int(model.config.num_labels or 0))
            difference = (head(features) - model(**batch).logits.cpu()).abs().max().item()
        if difference > 1e-4:
            raise UserError(
                "the heads of this architecture read more than the first token, which is not supported",
                key="backbone.pretrained", found=type(model).__name__, expected="such as BERT, RoBERTa, ELECTRA, DeBERTa, ViT, DINOv2",
            )  # fmt: skip

    def _pool(self, output: Any, mask: Tensor | None, layer: int = -1) -> Features:
        """Features of an encoder's output on the CPU; ``mean`` from one of its layers."""
        states = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
        return {key: value.cpu() for key, value in {**self.head_input(output), **router_input(states, mask)}.items()}

    def _attention(self) -> dict[str, str]:
        """On a CPU the fused attention's backward pass takes several times as long as the plain one's."""
        return {"attn_implementation": "eager"} if self.device.type == "cpu" else {}

    def _draw_head(self, model: PreTrainedModel, report: dict) -> None:
        """Replace a head that the folder happened to hold by a newly drawn one."""
        head = self.head_state(model)
        if set(head) <= {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}:
            return
        drawn = self.classifier.from_config(model.config, trust_remote_code=self.options.trust_remote_code)
        model.load_state_dict({name: drawn.state_dict()[name] for name in head}, strict=False)

    def _check_report(self, model: PreTrainedModel, report: dict, source: Path, new_head: bool) -> None:
        prefix = model.base_model_prefix + "."
        needed = [name for name in model.state_dict() if not new_head or name.startswith(prefix)]
        needed = [name for name in needed if not name.endswith(".num_batches_tracked")]  # a count that many leave out
        # a bare encoder may come without the pooler that a classifier adds; only then is it initialized
        poolers = [name for name in needed if new_head and ".pooler." in name and name in report["missing_keys"]]
        _initialize_alike(model, poolers)
        check_loaded(model, report, source, set(needed) - set(poolers))


def longest_first(inputs: Inputs) -> list[int]:
    """Row numbers from the longest to the shortest, so that a batch pads little and memory peaks at once."""
    lengths = inputs.lengths
    return sorted(range(len(lengths)), key=lambda row: -lengths[row])


def _initialize_alike(model: nn.Module, names: Sequence[str]) -> None:
    """Give parameters that a checkpoint lacks the same values every time, since θ₀ must be one encoder for all experts."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for name in names:
            parameter = model.get_parameter(name)
            parameter.normal_(std=0.02) if parameter.dim() > 1 else parameter.zero_()
