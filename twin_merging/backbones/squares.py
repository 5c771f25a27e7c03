"""Σ over examples of squared gradients of one layer's parameters, from its inputs and the gradient of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from twin_merging.dynamic.convolution import is_convolution, padded
from twin_merging.dynamic.routed import instead_of

CHUNK = 1 << 21  # numbers of per-example gradients that are in memory at a time: so many stay in cache
Totals = Mapping[str, Tensor]
Rule = Callable[[Any, Tensor, Tensor, Totals], None]
"""(layer, its input (B, ...), the gradient of its output (B, ...), by parameter what to add to)."""


def rule_of(module: nn.Module) -> Rule | None:
    """How the gradient of each single example is known for a layer of this very class; None where it is not."""
    if is_convolution(module):
        return _convolution
    if isinstance(module, _BatchNorm) and (module.running_mean is None or module.weight is None):
        return None
    return RULES.get(type(module)) or NAMED.get(f"{type(module).__module__}.{type(module).__name__}")


def linear(module: nn.Module, states: Tensor, gradient: Tensor, totals: Totals) -> None:
    """Of ``weight`` (out, in) and ``bias``, of tokens (B, ..., in)."""
    states, weight = states.to(gradient.dtype), totals["weight"]
    if gradient.dim() == 2:  # one token an example: the square of a product is the product of squares
        weight.addmm_(gradient.square().T.to(weight.dtype), states.square().to(weight.dtype))
    else:
        states, columns = states.flatten(1, -2), gradient.flatten(1, -2).transpose(1, 2)
        size = max(1, CHUNK // (len(states) * weight.shape[1]))  # rows of the weight, of all examples at once
        for part, total in zip(columns.split(size, dim=1), weight.split(size), strict=True):
            total += torch.bmm(part, states).to(weight.dtype).square_().sum(0)
    if "bias" in totals:
        totals["bias"] += _over_tokens(gradient, weight.dtype).square().sum(0)


def class_and_positions(module: nn.Module, states: Tensor, gradient: Tensor, totals: Totals) -> None:
    """Of ``positions`` (S, d), and of a class token ``class`` (d) if there is one, once both have been added: the gradient is the
    sum's."""
    squares = gradient.to(totals["positions"].dtype).square().sum(0)
    if "class" in totals:
        totals["class"] += squares[0]
    totals["positions"] += squares


def _convolution(module: Any, states: Tensor, gradient: Tensor, totals: Totals) -> None:
    """A convolution is a linear layer of the patches that it sees; of groups each is one of its own channels."""
    states, padding = padded(module, states)
    patches = functional.unfold(states, module.kernel_size, module.dilation, padding, module.stride)
    gradient, groups = gradient.flatten(2), module.groups
    if groups == 1:
        flat = {name: total.flatten(1) if name == "weight" else total for name, total in totals.items()}
        linear(module, patches.mT, gradient.mT, flat)
        return
    weight = totals["weight"]
    size = max(1, CHUNK // weight.numel())  # examples at a time
    for seen, wanted in zip(patches.split(size), gradient.split(size), strict=True):
        own = wanted.unflatten(1, (groups, -1)) @ seen.to(wanted.dtype).unflatten(1, (groups, -1)).mT
        weight += own.to(weight.dtype).square_().sum(0).view_as(weight)
    if "bias" in totals:
        totals["bias"] += gradient.to(weight.dtype).sum(2).square().sum(0)


def _layer_norm(module: Any, states: Tensor, gradient: Tensor, totals: Totals) -> None:
    dtype = totals["weight"].dtype
    normal = functional.layer_norm(states.to(dtype), module.normalized_shape, eps=module.eps)
    totals["weight"] += _over_tokens(gradient.to(dtype) * normal, dtype).square().sum(0)
    if "bias" in totals:
        totals["bias"] += _over_tokens(gradient, dtype).square().sum(0)


def _batch_norm(module: Any, states: Tensor, gradient: Tensor, totals: Totals) -> None:
    """As it answers, by running statistics: of (B, channels, ...), one gain and shift a channel."""
    dtype = totals["weight"].dtype
    shape = (1, -1, *[1] * (states.dim() - 2))
    mean, variance = (each.to(dtype).view(shape) for each in (module.running_mean, module.running_var))
    normal = (states.to(dtype) - mean) * (variance + module.eps).rsqrt()
    for name, each in (("weight", gradient.to(dtype) * normal), ("bias", gradient.to(dtype))):
        totals[name] += each.flatten(2).sum(2).square().sum(0) if each.dim() > 2 else each.square().sum(0)


def _batch_norm_and_activation(module: Any, states: Tensor, gradient: Tensor, totals: Totals) -> None:
    """timm's layer that normalizes, drops and activates: the gradient is taken back to where it has normalized."""
    with torch.enable_grad():
        normal = functional.batch_norm(
            states, module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps
        ).requires_grad_()
        (before,) = torch.autograd.grad(module.act(module.drop(normal.clone())), normal, gradient)
    _batch_norm(module, states, before, totals)


def _scale(module: nn.Module, states: Tensor, gradient: Tensor, totals: Totals) -> None:
    """Of the one parameter γ (d) of y = γ ⊙ x."""
    ((_, total),) = totals.items()
    total += _over_tokens(gradient.to(total.dtype) * states.to(total.dtype), total.dtype).square().sum(0)


def _embedding(module: nn.Embedding, ids: Tensor, gradient: Tensor, totals: Totals) -> None:
    """Only rows that an example looks up have a gradient; a row looked up twice has the sum of both."""
    weight = totals["weight"]
    examples = torch.arange(len(ids), device=ids.device).view(-1, *[1] * (ids.dim() - 1))
    lookups, place = (examples * len(weight) + ids).flatten().unique(return_inverse=True)
    sums = weight.new_zeros(len(lookups), weight.shape[1]).index_add_(
        0, place, gradient.flatten(0, -2).to(weight.dtype)
    )
    if module.padding_idx is not None:
        sums[lookups % len(weight) == module.padding_idx] = 0  # torch never trains this row
    weight.index_add_(0, lookups % len(weight), sums.square_())


def _image_embeddings(module: Any, pixels: Tensor, gradient: Tensor, totals: Totals) -> None:
    """Of tokens that come before the patches, and of positions that are added to all of them, resized to the image's size.

    A mask's token is none of an image that nothing masks.
    """
    positions = totals["position_embeddings"]
    gradient = gradient.to(positions.dtype)
    for place, name in enumerate(name for name in ("cls_token", "distillation_token") if name in totals):
        totals[name] += gradient[:, place].square().sum(0)
    if gradient.shape[1] != positions.shape[1]:
        gradient = _resizing(module, gradient.shape[1], pixels).mT @ gradient
    positions += gradient.square().sum(0)


def _resizing(module: Any, tokens: int, pixels: Tensor) -> Tensor:
    """J of resized positions = J · positions, (tokens, positions): what the module makes of the unit vectors."""
    own = module.position_embeddings
    unit = torch.eye(own.shape[1], dtype=own.dtype, device=own.device).unsqueeze(0)
    with instead_of(module, {"position_embeddings": unit}):
        return module.interpolate_pos_encoding(unit.new_zeros(1, tokens, own.shape[1]), *pixels.shape[-2:])[0]


RULES: dict[type, Rule] = {
    nn.Linear: linear,
    NonDynamicallyQuantizableLinear: linear,
    nn.LayerNorm: _layer_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.Embedding: _embedding,
}
NAMED: dict[str, Rule] = {
    "open_clip.transformer.LayerNorm": _layer_norm,
    "open_clip.transformer.LayerScale": _scale,
    "timm.layers.norm.LayerNorm": _layer_norm,
    "timm.layers.norm_act.BatchNormAct2d": _batch_norm_and_activation,
    "timm.layers.layer_scale.LayerScale": _scale,
    "transformers.models.dinov2.modeling_dinov2.Dinov2LayerScale": _scale,
    "transformers.models.dinov2.modeling_dinov2.Dinov2Embeddings": _image_embeddings,
    "transformers.models.vit.modeling_vit.ViTEmbeddings": _image_embeddings,
    "transformers.models.deit.modeling_deit.DeiTEmbeddings": _image_embeddings,
}
"""Classes that need not be imported to be known."""


def _over_tokens(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum of all dimensions but the first and the last: (examples, n)."""
    return values.to(dtype).reshape(len(values), -1, values.shape[-1]).sum(1)
