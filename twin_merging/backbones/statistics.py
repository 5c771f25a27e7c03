"""What a model's layers see and how its answers depend on them, collected by hooks while batches pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from twin_merging.backbones.encoders import EncoderBackbone, Inputs, longest_first
from twin_merging.backbones.squares import Rule, class_and_positions, linear, rule_of
from twin_merging.backbones.unpacked import Unpacked, unpacked
from twin_merging.errors import UserError
from twin_merging.progress import progress

TURNED = " turned"
"""Ends the name of a G whose parameter P is applied as x · P, so that its rows are the layer's inputs."""


def batches(backbone: EncoderBackbone, inputs: Inputs, batch_size: int, label: str) -> Iterator[tuple[list[int], Any]]:
    """(row numbers, padded batch on the backbone's device), batched by length."""
    order = longest_first(inputs)
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    with progress(label, len(order), "rows") as bar:
        for rows, batch in zip(parts, backbone.batches(inputs, parts), strict=True):
            yield rows, batch
            bar.advance(len(rows))


@torch.inference_mode()
def grams(
    backbone: EncoderBackbone, encoder: nn.Module, inputs: Inputs, batch_size: int, label: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """G = XᵀX of the inputs X (real tokens, in) of every linear layer, float32 (Jin et al., 2023, section 3).

    Returns:
        G by a layer's name, and for every linear weight by its parameter name, the layer whose G is its own: layers that
        read the same tensor share one. A packed weight of q, k and v is one layer's; a name that ends in ``TURNED`` is of a
        parameter that its encoder applies from the right.
    """
    encoder.to(backbone.device).eval()
    totals: dict[str, Tensor] = {}
    layer_of: dict[str, str] = {}
    mask, last = torch.empty(0), ("", torch.empty(0))

    def see(name: str, parameter: str, module: nn.Linear, given: tuple[Tensor]) -> None:
        nonlocal last
        (states,) = given
        if states is not last[1] or name.endswith(TURNED):
            last = name, states
        layer_of[parameter] = last[0]
        if last[0] == name:
            real = states[mask] if states.shape[:-1] == mask.shape else states.flatten(0, -2)
            real = real.float()
            total = totals.setdefault(name, real.new_zeros(real.shape[1], real.shape[1]))
            total.addmm_(real.T, real)

    layers = {name: module for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    with unpacked(encoder) as parts:
        watched = [(name, f"{name}.weight", layer) for name, layer in layers.items()]
        for name, part in parts.matrices.items():
            watched.append((name + TURNED if part.turned else name, part.weight, part.layer))
        with _hooks(layer.register_forward_pre_hook(partial(see, name, weight)) for name, weight, layer in watched):
            for _, batch in batches(backbone, inputs, batch_size, label):
                mask = batch.get("attention_mask", torch.empty(0)).bool()
                with torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.autocast):
                    encoder(**batch)
    return totals, layer_of


def diagonal_fisher(
    backbone: EncoderBackbone, model: Any, inputs: Inputs, labels: str, truth: list, batch_size: int, seed: int, label: str,
) -> dict[str, Tensor]:  # fmt: skip
    """F = (1/N) Σ_x E_y (∂ log p(y|x) / ∂θ)², entry by entry, of a model's encoder (Matena & Raffel, 2022, equation 3).

    A regression is a Gaussian of variance 1 around its answer. All examples of a batch go back at once, a label at a time.

    Args:
        model: encoder and head of one expert.
        labels: ``expectation`` over y under the model's own p(y|x), y ``sampled`` from it, or the ``true`` y.
        truth: the true labels of the rows, read for ``true`` only.
        seed: of the sampling.

    Raises:
        UserError: if the encoder has a layer whose per-example gradients are not known.
    """
    model.to(backbone.device).eval().requires_grad_(False)
    generator, encoder = torch.Generator().manual_seed(seed), backbone.encoder(model)
    totals = {name: torch.zeros_like(parameter) for name, parameter in encoder.named_parameters()}
    with unpacked(encoder) as parts, (squares := _Squares(encoder, totals, parts)).hooks():
        for rows, batch in batches(backbone, inputs, batch_size, label):
            squares.start(len(rows))
            with torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.autocast):
                logits = model(**batch).logits
            logits = logits if logits.dtype == torch.float64 else logits.float()
            squares.check()
            own = torch.tensor([truth[row] for row in rows], device=backbone.device) if labels == "true" else None
            terms = _log_likelihoods(logits, model.config.problem_type == "regression", labels, own, generator)
            for term in terms:
                term.backward(retain_graph=True)
    return {name: total / len(inputs.rows) for name, total in totals.items()}


def _log_likelihoods(
    logits: Tensor, regression: bool, labels: str, own: Tensor | None, generator: torch.Generator
) -> Iterator[Tensor]:
    """Sums over examples whose per-example gradients, squared and added up, make E_y (∂ log p(y|x))²."""
    if regression:
        answers = logits.flatten()
        residuals = {
            "expectation": lambda: torch.ones_like(answers),  # E ε² = 1
            "sampled": lambda: torch.randn(len(answers), generator=generator).to(answers),
            "true": lambda: (own - answers).detach(),  # type: ignore[operator]
        }[labels]()
        yield (residuals * answers).sum()
        return
    log_p = logits.log_softmax(-1)
    p = log_p.detach().exp()
    if labels == "expectation":
        for label in range(p.shape[1]):
            yield (p[:, label].sqrt() * log_p[:, label]).sum()
    else:
        chosen = own if own is not None else torch.multinomial(p.cpu(), 1, generator=generator).flatten().to(p.device)
        yield log_p.gather(1, chosen.unsqueeze(1)).sum()


class _Layer(NamedTuple):
    """A layer whose outputs' gradients are squared.

    Args:
        rule: how.
        totals: by what the rule calls a parameter, the sum so far.
    """

    module: nn.Module
    rule: Rule
    totals: dict[str, Tensor]


class _Squares:
    """Σ over examples of each parameter's squared gradient, added up at every backward pass.

    Weights need no gradient of their own: graphs start at the outputs of the first layers, such as embeddings, and each
    layer's hook makes the per-example gradients of its parameters from its inputs and the gradient of its outputs.

    Args:
        totals: by parameter name, what is added to.
        parts: what the encoder applies without calling a layer.
    """

    def __init__(self, encoder: nn.Module, totals: dict[str, Tensor], parts: Unpacked):
        self._layers: dict[str, _Layer] = {}
        apart = parts.parameters
        for name, module in encoder.named_modules():
            at = f"{name}." if name else ""
            own = {key: f"{at}{key}" for key, _ in module.named_parameters(recurse=False)}
            mine = {key: totals[whole] for key, whole in own.items() if whole not in apart}
            if not mine:
                continue
            if (rule := rule_of(module)) is None:
                raise _not_known(name, module)
            self._layers[name] = _Layer(module, rule, mine)
        for name, part in parts.matrices.items():
            weight = totals[part.weight].T if part.turned else totals[part.weight]
            bias = {} if part.bias is None else {"bias": totals[part.bias]}
            self._layers[name] = _Layer(part.layer, linear, {"weight": weight, **bias})
        for name, added in parts.tokens.items():
            summed = {"positions": totals[added.positions]}
            if added.class_token is not None:
                summed["class"] = totals[added.class_token]
            self._layers[name] = _Layer(added.after, class_and_positions, summed)
        self._examples, self._called = 0, set[str]()

    def start(self, examples: int) -> None:
        """Before a forward pass of so many examples."""
        self._examples, self._called = examples, set()

    def check(self) -> None:
        """After a forward pass: a layer that was not called may have its parameters read in another way."""
        for name in self._layers.keys() - self._called:
            raise _not_known(name, self._layers[name].module)

    def hooks(self):
        """Context in which the encoder's layers are watched."""
        modules = {name: layer.module for name, layer in self._layers.items()}
        embeddings = [module for module in modules.values() if isinstance(module, nn.Embedding)]
        return _hooks(
            [
                *(module.register_forward_pre_hook(self._expand) for module in embeddings),
                *(module.register_forward_hook(partial(self._watch, name)) for name, module in modules.items()),
            ]
        )

    def _expand(self, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """Give each example its own positions, which architectures look up once for all."""
        (ids,) = inputs
        return (ids.expand(self._examples, *ids.shape[1:]) if len(ids) == 1 else ids,)

    def _watch(self, name: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if name in self._called or len(output) != self._examples:
            raise _not_known(name, module)
        self._called.add(name)
        if not output.requires_grad:  # nothing before it has parameters
            output = output.detach().requires_grad_().clone()
        output.register_hook(partial(self._add, self._layers[name], inputs[0].detach()))
        return output

    def _add(self, layer: _Layer, states: Tensor, gradient: Tensor) -> None:
        with torch.autocast(gradient.device.type, enabled=False), torch.no_grad():
            layer.rule(layer.module, states, gradient, layer.totals)


def _not_known(name: str, module: nn.Module) -> UserError:
    return UserError(
        "the gradient of each single example is not known for this layer", key="merge_method.name",
        found=f"fisher with {name} ({type(module).__name__})",
        expected="an encoder of linear layers, convolutions, embeddings and norms, each called once, such as BERT, ViT, CLIP or ResNet",
    )  # fmt: skip


@contextmanager
def _hooks(handles) -> Iterator[None]:
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
