"""What image encoders of open_clip's and timm's apply without calling a layer, as layers whose hooks fire."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

TOWER = "open_clip.transformer.VisionTransformer"
TIMM = "timm.models.vision_transformer.VisionTransformer"


class Matrix(NamedTuple):
    """A parameter that a linear layer applies in the encoder's place.

    Args:
        layer: its weight is the parameter's own memory.
        weight: the parameter's name.
        bias: its bias's name; None where there is none.
        turned: the parameter is the layer's weight transposed: it is applied as x · P.
    """

    layer: nn.Linear
    weight: str
    bias: str | None = None
    turned: bool = False


class Tokens(NamedTuple):
    """Where a class token and positions have been added to an encoder's tokens.

    Args:
        after: a module whose output is the sum, (B, tokens, d), the class token first if there is one.
        class_token: the parameter's name, of d numbers; None where there is none.
        positions: the parameter's name, of tokens · d numbers.
    """

    after: nn.Module
    class_token: str | None
    positions: str


class Unpacked(NamedTuple):
    """By the name that the layer would have: its packed attention and projection, and where its tokens are complete."""

    matrices: dict[str, Matrix]
    tokens: dict[str, Tokens]

    @property
    def parameters(self) -> set[str]:
        """The names of all parameters that are meant."""
        matrices = {name for each in self.matrices.values() for name in (each.weight, each.bias) if name}
        return matrices | {name for each in self.tokens.values() for name in (each.class_token, each.positions) if name}


@contextmanager
def unpacked(encoder: nn.Module) -> Iterator[Unpacked]:
    """Until this ends, the image towers of open_clip's in ``encoder`` attend and project by linear layers; others are left alone,
    and of timm's vision transformers only the place is found where tokens are complete.

    What the encoder computes is the same. nn.MultiheadAttention takes [q, k, v] from one packed matrix and its output
    projection without a call, and the tower's projection is a product of its own.
    """
    found = Unpacked({}, {})
    undo: list[Callable[[], Any]] = []
    place: str
    tower: Any
    for place, tower in encoder.named_modules():
        kind, at = f"{type(tower).__module__}.{type(tower).__name__}", f"{place}." if place else ""
        if kind == TIMM and _adds_positions_to_all(tower):
            class_token = None if tower.cls_token is None else f"{at}cls_token"
            found.tokens[f"{at}pos_drop"] = Tokens(tower.pos_drop, class_token, f"{at}pos_embed")
        if kind != TOWER:
            continue
        found.tokens[f"{at}patch_dropout"] = Tokens(
            tower.patch_dropout, f"{at}class_embedding", f"{at}positional_embedding"
        )
        for name, module in tower.named_modules(prefix=place):
            if isinstance(module, nn.MultiheadAttention):
                packed = _sharing(module.in_proj_weight, module.in_proj_bias)
                bias = None if module.in_proj_bias is None else f"{name}.in_proj_bias"
                found.matrices[f"{name}.in_proj"] = Matrix(packed, f"{name}.in_proj_weight", bias)
                module.forward = partial(_attend, module, packed)  # type: ignore[method-assign]
                undo.append(partial(delattr, module, "forward"))
        projection = _sharing(tower.proj.T, None)
        found.matrices[f"{at}proj"] = Matrix(projection, f"{at}proj", turned=True)
        undo.append(partial(tower._parameters.__setitem__, "proj", tower.proj))
        tower._parameters["proj"] = None
        undo.append(tower.register_forward_hook(partial(_project, projection)).remove)
    try:
        yield found
    finally:
        for back in undo:
            back()


def _adds_positions_to_all(tower: Any) -> bool:
    """Whether a vision transformer of timm's adds positions to its class token too, and has no other tokens of its own."""
    own = {name for name, _ in tower.named_parameters(recurse=False)}
    return "pos_embed" in own <= {"cls_token", "pos_embed"} and ("cls_token" not in own or not tower.no_embed_class)


def _sharing(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with these tensors."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def _attend(
    attention: nn.MultiheadAttention, packed: nn.Linear, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False,
    attn_mask: Tensor | None = None,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of tokens (B, S, d) to each other, as nn.MultiheadAttention, both of its matrices applied by layers."""
    assert query is key is value, "attention of tokens to each other"
    assert attention.batch_first
    assert not need_weights
    q, k, v = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in packed(query).chunk(3, -1))
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2)), None


def _project(projection: nn.Linear, _: nn.Module, __: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    pooled, tokens = output
    return projection(pooled), tokens
