"""Replace a model's layers by routed ones, each by the form that fits it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from twin_merging.dynamic.attention import RoutedAttention
from twin_merging.dynamic.batch_norm import RoutedBatchNorm, is_batch_norm
from twin_merging.dynamic.convolution import RoutedConv2d, is_convolution
from twin_merging.dynamic.fallback import RoutedByExample, warn
from twin_merging.dynamic.image_tower import IMAGE_TOWER, RoutedImageTower, RoutedTokens
from twin_merging.dynamic.layers import (
    RoutedConv1D,
    RoutedEmbedding,
    RoutedLayerNorm,
    RoutedLinear,
    RoutedRMSNorm,
    RoutedScale,
)
from twin_merging.dynamic.mixture import Mixture
from twin_merging.dynamic.plan import Planner
from twin_merging.dynamic.routed import Routed
from twin_merging.parameters import is_statistic
from twin_merging.sparsifiers.sparse import Sparse
from twin_merging.sparsifiers.stored import Delta, multiplied_out
from twin_merging.sparsifiers.svd import Factors

FORMS: dict[type[nn.Module], type[Routed]] = {
    nn.Linear: RoutedLinear, nn.modules.linear.NonDynamicallyQuantizableLinear: RoutedLinear, Conv1D: RoutedConv1D,
    nn.Embedding: RoutedEmbedding, nn.LayerNorm: RoutedLayerNorm, nn.RMSNorm: RoutedRMSNorm,
    nn.MultiheadAttention: RoutedAttention,
}  # fmt: skip
SCALES = ("RMSNorm", "LayerScale")
"""Ends of the names of classes that multiply their input by a vector, without adding to it first (``RoutedScale``)."""
TOKENS = ("ViTEmbeddings", "Dinov2Embeddings", "DeiTEmbeddings", "CLIPVisionEmbeddings")
"""Classes that put tokens or positions of their own beside each image's (``RoutedTokens``)."""
TIMM_TOKENS = ("cls_token", "reg_token", "dist_token", "pos_embed")
"""Parameters of timm's vision transformers that are such tokens and positions."""
LAYER_NORMS = ("open_clip.transformer.LayerNorm", "timm.layers.norm.LayerNorm")
"""Subclasses of nn.LayerNorm that compute as it does and give their input's dtype back."""
POSITIONS = {
    "DebertaEncoder": ("rel_embeddings", "pos_proj", "pos_q_proj"),
    "DebertaV2Encoder": (
        "rel_embeddings", "LayerNorm", "query_proj", "key_proj", "pos_query_proj", "pos_key_proj",
    ),
    "MPNetEncoder": ("relative_attention_bias",), "T5Stack": ("relative_attention_bias",),
}  # fmt: skip
"""Classes with relative positions, and their modules that are applied to these, which are no example's."""


def route(encoder: nn.Module, deltas: Mapping[str, Delta], mixture: Mixture, planner: Planner) -> nn.Module:
    """Replace, in place, each module of ``encoder`` that has a delta by its routed form.

    A module without one runs its own code once for each example's weights, and a warning names it. A parameter that
    several modules have in common, such as a language model's tied embeddings, is routed in all of them.

    Args:
        encoder: holds the shared expert's weights.
        deltas: exclusive knowledge by parameter name, and what each expert adds to running statistics.
        mixture: where the routed modules read the batch's weights.
        planner: chooses how they compute.

    Raises:
        AttributeError: if the model has no parameter of that name.
    """
    by_module: dict[str, dict[str, Factors | Tensor]] = {}
    owners = _owners(encoder)
    for name, delta in deltas.items():
        kept = multiplied_out(delta) if isinstance(delta, Sparse) else delta
        tensor = encoder.get_buffer(name) if is_statistic(name) else encoder.get_parameter(name)
        for owner, parameter in owners[tensor]:
            by_module.setdefault(owner, {})[parameter] = kept
    whole = _with_positions(encoder, by_module)
    for name in sorted(by_module, key=lambda name: -name.count(".") if name else 1):  # the innermost first
        quiet = any(name.startswith(outer) for outer in whole)
        encoder = _replaced(encoder, name, by_module[name], mixture, planner, quiet)
    for outer in whole:
        encoder = _replaced(encoder, outer.rstrip("."), {}, mixture, planner)
    return encoder


def _with_positions(encoder: nn.Module, routed: Collection[str]) -> list[str]:
    """Modules of ``POSITIONS`` in which one that is applied to positions is routed: the starts of their modules' names."""
    found = []
    for name, module in encoder.named_modules():
        start, parts = f"{name}." if name else "", POSITIONS.get(type(module).__name__, ())
        inside = (other for other in routed if other.startswith(start) and other.rpartition(".")[2] in parts)
        if any(inside) and getattr(module, "relative_attention", True):
            found.append(start)
    return found


def _owners(encoder: nn.Module) -> dict[Tensor, list[tuple[str, str]]]:
    """By parameter, or running statistic, (module, name): where it is read."""
    owners: dict[Tensor, list[tuple[str, str]]] = {}
    for name, module in encoder.named_modules():
        outer, _, last = name.rpartition(".")
        inner = last == "out_proj" and isinstance(encoder.get_submodule(outer), nn.MultiheadAttention)
        for parameter, tensor in module.named_parameters(recurse=False):
            # an attention reads the weight of its projection by itself
            owners.setdefault(tensor, []).append((outer, f"out_proj.{parameter}") if inner else (name, parameter))
        for buffer, tensor in module.named_buffers(recurse=False):
            if is_statistic(buffer):
                owners.setdefault(tensor, []).append((name, buffer))
    return owners


def _replaced(
    encoder: nn.Module, name: str, deltas: dict[str, Factors | Tensor], mixture: Mixture, planner: Planner,
    quiet: bool = False,
) -> nn.Module:  # fmt: skip
    shared = encoder.get_submodule(name)
    form = _form(shared, deltas)
    path = f"{type(encoder).__name__}.{name}" if name else type(encoder).__name__
    if form is RoutedByExample and not quiet:
        warn(path, type(shared).__name__)
    deltas = {key: x if key in form.factored else multiplied_out(x) for key, x in deltas.items()}
    layer = form(shared, mixture, planner, deltas, path)
    if not name:
        return layer
    parent, _, attribute = name.rpartition(".")
    setattr(encoder.get_submodule(parent), attribute, layer)
    return encoder


def _form(shared: nn.Module, deltas: Mapping[str, Factors | Tensor]) -> type[Routed]:
    name = type(shared).__name__
    if isinstance(shared, nn.MultiheadAttention) and (
        shared.in_proj_weight is None or shared.bias_k is not None or shared.add_zero_attn
    ):
        return RoutedByExample
    if type(shared) in FORMS:
        return FORMS[type(shared)]
    place = type(shared).__module__
    if isinstance(shared, nn.LayerNorm) and f"{place}.{name}" in LAYER_NORMS:
        return RoutedLayerNorm
    if place in ("timm.models.vision_transformer", "timm.models.deit") and set(deltas) <= set(TIMM_TOKENS):
        return RoutedTokens
    if name == "VisionTransformer" and set(deltas) <= set(IMAGE_TOWER) and hasattr(shared, "positional_embedding"):
        return RoutedImageTower
    if is_convolution(shared):
        return RoutedConv2d
    if is_batch_norm(shared):
        return RoutedBatchNorm
    if name.endswith(SCALES) and all(delta.dim() == 2 for delta in deltas.values() if isinstance(delta, Tensor)):
        return RoutedScale
    return RoutedTokens if name in TOKENS else RoutedByExample
