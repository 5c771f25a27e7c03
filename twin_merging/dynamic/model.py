"""Twin-Merging's model: θ*(x) = θ_s + Σ_t w_t(x) v_t for each example of a batch, exactly, in one pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twin_merging.backbones.blocks import blocks_of, input_of, states_at
from twin_merging.backbones.features import token_state, tokens_of
from twin_merging.checkpoints import check
from twin_merging.config import Exact, Svd, TaskArithmetic, bytes_of, merge_methods, sparsifiers
from twin_merging.dynamic.fallback import WholeModel
from twin_merging.dynamic.folder import load, save
from twin_merging.dynamic.matrix import RoutedMatrix
from twin_merging.dynamic.mixture import Mixture
from twin_merging.dynamic.plan import Explained, Planner
from twin_merging.dynamic.route import route
from twin_merging.dynamic.routed import NotRoutable, weights_of
from twin_merging.errors import UserError
from twin_merging.merging.apply import merge, modularize
from twin_merging.merging.twin import exclusive_knowledge
from twin_merging.parameters import VARIANCE, is_statistic
from twin_merging.sparsifiers.stored import Delta, weighted_sum


class TwinMergedModel(nn.Module):
    """A model whose weights differ from example to example (paper section 3.3, equation 3). It answers and does not learn.

    Args:
        shared: the encoder, or a whole model, with θ_s. It is changed in place: its layers become routed ones.
        exclusive: v_t by parameter name, factored, sparse or whole; by the name of a BatchNorm's running mean or variance what each
            expert adds to the shared one's, (T, channels).
        options: how it computes, and whether it leaves experts of little weight out.
        router: its ``weights`` give w(x), (B, T); needed to route, not to answer under weights that are given. Its ``layer``
            says whose mean token states it reads, (B, d); one without a layer reads token ids and their mask, (B, S) each.
    """

    def __init__(
        self, shared: nn.Module, exclusive: Mapping[str, Delta], options: Exact | None = None,
        router: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        self.router: Any
        self.encoder: Any
        options = options or Exact()
        self.exclusive, self.router = exclusive, router
        self._shared = shared.state_dict(keep_vars=True)
        self.mixture, self.lower = Mixture(options.top_k, options.mass), options.lower
        self.planner = Planner(options.plan, bytes_of(options.memory, "inference.memory"), kernels=options.kernels)
        self.encoder = route(shared, exclusive, self.mixture, self.planner)
        self._whole = WholeModel(type(shared).__name__)
        self.requires_grad_(False)

    @classmethod
    def from_experts(
        cls, base: nn.Module, experts: Sequence[nn.Module], shared: Any = None, sparsifier: Any = None,
        options: Exact | None = None, router: nn.Module | None = None,
    ) -> TwinMergedModel:  # fmt: skip
        """Merge models of one architecture that are in memory.

        Args:
            base: the pre-trained model, which becomes the shared expert.
            experts: the fine-tuned ones.
            shared: options of the static method that makes the shared expert; Task Arithmetic without them.
            sparsifier: options of what compresses θ_t − θ_s; the SVD at rank 16 without them.
            options, router: as of the model.

        Raises:
            UserError: if the model has BatchNorm.
        """
        if any(map(is_statistic, base.state_dict())):
            raise UserError(
                "BatchNorm's running statistics are found by inputs, of which there are none here", key="base",
                found=type(base).__name__, expected="a model without BatchNorm",
                hint="TwinMergedModel(shared, exclusive) takes them among exclusive: what each expert adds to shared's",
            )  # fmt: skip
        shared, sparsifier = shared or TaskArithmetic(), sparsifier or Svd(rank=16)
        states = [{name: x.detach() for name, x in model.named_parameters()} for model in (base, *experts)]
        start, others = states[0], states[1:]
        exclusive: dict[str, Delta] = {}
        for number, state in enumerate(others):
            check(state, start, f"experts[{number}]")
        merged = merge(merge_methods[shared.name].load(), shared, start, others, list(start))
        modularize(
            exclusive.__setitem__, sparsifiers[sparsifier.name].load(), sparsifier, exclusive_knowledge(merged, others, start)
        )  # fmt: skip
        base.load_state_dict(merged, strict=False)
        model = cls(base, {name: exclusive[name] for name in start}, options, router)
        return model.to(next(iter(start.values())).device)  # knowledge is made on the CPU

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, options: Exact | None = None, dtype: torch.dtype = torch.float32, base: str | None = None
    ) -> TwinMergedModel:  # fmt: skip
        """The model of a folder that ``save_pretrained`` or ``merge.py merge_method=twin`` wrote.

        Args:
            dtype: of the shared expert and of v_t: bfloat16 takes half the memory, and rounds to three digits.
            base: θ₀, where the shared expert is an adapter: a folder or a hub name; None: where it was when they merged.

        Raises:
            UserError: if the folder holds no twin, or θ₀ is not found or does not fit.
        """
        return load(cls, Path(folder), options, dtype, base)

    def save_pretrained(self, folder: str | Path, experts: Sequence[str] = ()) -> None:
        """Write the shared expert, v_t, the router and what the experts are called into a new folder."""
        save(self, self._shared, Path(folder), experts)

    def forward(self, *args: Any, weights: Tensor | None = None, start: int | None = None, **inputs: Any) -> Any:
        """The model's output under each example's own weights.

        Args:
            weights: w(x), (B, T), or (1, T) for all examples; None evaluates the shared expert.
            start: the first block that has weights of its own; embeddings and blocks below are the shared expert's.
        """

        def run(weights: Tensor | None, given: tuple[tuple, dict[str, Any]]) -> Any:
            if weights is not None and start is not None:
                return self._from_block(start, lambda _: weights, *given)
            with self.mixture.of(weights):
                return self.encoder(*given[0], **given[1])

        return self._whole(weights, (args, inputs), run)

    @torch.inference_mode()
    def answer(self, **inputs: Any) -> Any:
        """Route a batch and answer it.

        All of the answering pass is under w(x), and before it the shared expert runs as far as the router reads: not at all for
        one of token ids, the whole of it for the last layer (the paper's). With ``lower="shared"`` and a router of layer
        k ≥ 0 one pass does both: what is below block k is the shared expert's.
        """
        layer, mask = self._layer(), inputs.get("attention_mask")
        if self.lower == "mixed" or layer is None or not 0 <= layer < len(self._blocks()):
            return self(weights=self.route(**inputs), **inputs)
        try:
            return self._from_block(layer, lambda states: self._weights(states, mask), (), inputs)
        except NotRoutable:  # where weights have to be known before it runs
            return self(weights=self.route(**inputs), start=layer, **inputs)

    @torch.inference_mode()
    def route(self, **inputs: Tensor) -> Tensor:
        """w(x) of a batch, (B, T): the router's answer to the mean of the shared expert's token states (paper section 3.3), or to
        the last token's if it was trained on those.

        The shared expert runs up to the layer that is read: block k and what comes after it do not. A router of token ids
        runs none of it.

        Args:
            inputs: as of the model; ``attention_mask`` tells tokens from padding.

        Raises:
            UserError: if the router reads token ids and there are none.
        """
        layer, mask = self._layer(), inputs.get("attention_mask")
        if layer is None:
            return self.router.weights(_token_ids(inputs), mask)
        return self._weights(states_at(self.encoder, layer, lambda **asked: self(**{**inputs, **asked})), mask)

    @torch.inference_mode()
    def generate(self, input_ids: Tensor, weights: Tensor | None = None, **arguments: Any) -> Tensor:
        """``generate`` of the causal language model, each prompt under weights that stay for its whole sequence.

        Prompts of different tasks may be in one batch, padded on the left. Several beams or sequences of a prompt all have
        its weights.

        Args:
            input_ids: prompts, (B, S).
            weights: w(x), (B, T); without them the router reads the prompts, and without a router θ_s answers.
            arguments: as of transformers' ``generate``; ``attention_mask`` tells tokens from padding.
        """
        if weights is None and self.router is not None:
            given, mask = {}, arguments.get("attention_mask")
            if mask is not None:
                given["attention_mask"] = mask
                if "position_ids" in inspect.signature(self.encoder.forward).parameters:
                    given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)  # padding on the left shifts no token
            weights = self.route(input_ids=input_ids, **given)
        with self._sequences(weights):
            return self.encoder.generate(input_ids=input_ids, **arguments)

    @torch.no_grad()
    def merge_for(self, weights: Tensor) -> dict[str, Tensor]:
        """The state dict of the plain model θ_s + Σ_t w_t v_t for one example's weights, (T)."""
        own = {tensor: tensor.detach().clone() for tensor in self._shared.values()}  # several names may have one tensor
        for name, delta in self.exclusive.items():
            merged = own[self._shared[name]]
            merged += weighted_sum(weights, delta).to(merged)
            if name.endswith(VARIANCE):
                merged.clamp_(min=0)
        return {name: own[tensor] for name, tensor in self._shared.items()}

    @torch.inference_mode()
    def explain(self, *args: Any, **inputs: Any) -> list[Explained]:
        """Each matrix's plan for a batch like this one, which is answered and thrown away, in the order of the layers."""
        self(*args, **inputs)
        return self.plans()

    def plans(self) -> list[Explained]:
        """Each matrix's plan for the last batch, in the order of the layers."""
        places = {
            part.path: place for place, part in enumerate(self.encoder.modules()) if isinstance(part, RoutedMatrix)
        }
        return sorted(self.planner.explained(), key=lambda layer: places[layer.layer])

    def _layer(self) -> int | None:
        """The layer that the router reads, −1 the last; None where it reads token ids."""
        assert self.router is not None, "this model has no router"
        layer = getattr(self.router, "layer", None)
        return None if layer is None else int(layer)

    def _weights(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """w(x) from token states (B, S, d): the router's answer to what it reads of them, in float32 also under autocast."""
        states = tokens_of(states)
        real = torch.ones(states.shape[:2], device=states.device) if mask is None else mask
        with torch.autocast(states.device.type, enabled=False):
            return self.router.weights(token_state(states, real, getattr(self.router, "token", "mean")))

    def _from_block(self, start: int, find: Callable[[Tensor], Tensor], args: tuple, inputs: Mapping[str, Any]) -> Any:
        """One pass in which weights are mixed from a block on, found from the states that go into it."""

        def begin(_: nn.Module, given: tuple, named: dict) -> None:
            self.mixture.weights = find(input_of(given, named))

        hook = self._blocks()[start].register_forward_pre_hook(begin, with_kwargs=True)
        try:
            with self.mixture.of(None):
                return self.encoder(*args, **inputs)
        finally:
            hook.remove()

    def _blocks(self) -> nn.ModuleList | nn.Sequential:
        """The model's blocks, one after the other."""
        blocks = blocks_of(self.encoder)
        if blocks is None:
            raise UserError(
                "this model's blocks are not found, so that none can be the first", key="inference.lower",
                found=type(self.encoder).__name__, expected="a list of as many as config.num_hidden_layers says",
                hint="inference.lower=mixed",
            )  # fmt: skip
        return blocks

    @contextmanager
    def _sequences(self, weights: Tensor | None) -> Iterator[None]:
        """Evaluate with the weights repeated for each prompt's beams or sequences, which lie side by side."""

        def repeat(_: nn.Module, args: tuple, kwargs: dict) -> None:
            ids = kwargs.get("input_ids", args[0] if args else None)
            if weights is not None and ids is not None and len(ids) != len(weights_of(self.mixture)) != 1:
                self.mixture.weights = weights.repeat_interleave(len(ids) // len(weights), 0)

        hook = self.encoder.register_forward_pre_hook(repeat, with_kwargs=True)
        try:
            with self.mixture.of(weights, lasting=True):
                yield
        finally:
            hook.remove()


def _token_ids(inputs: Mapping[str, Any]) -> Tensor:
    """The batch's token ids, (B, S)."""
    ids = inputs.get("input_ids")
    if ids is None:
        raise UserError(
            "this router reads token ids", key="router", found=", ".join(inputs) or "no input", expected="input_ids",
            hint="a router of the shared expert's states (router=mlp) reads what is no text",
        )  # fmt: skip
    return ids
