"""timm's image encoders: what a folder in timm's form says of one, and the encoder itself with its published weights."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from twin_merging.backbones.sources import Source, locate, read_config
from twin_merging.config import Timm
from twin_merging.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORM = f"{CONFIG} with timm's architecture and pretrained_cfg, and {WEIGHTS}"
SEED = 0


class Start(NamedTuple):
    """A published model, taken apart, and what one pass of it shows.

    Args:
        encoder: timm's model without its classifier.
        classifier: which it was published with, if it is one linear layer that answers from the pooled features as the model does.
        architecture: timm's name.
        model_args: further arguments that it was built with.
        seen: timm's data configuration: ``input_size``, ``crop_pct``, ``crop_mode``, ``interpolation``, ``mean``, ``std``.
        width: of the pooled features, d.
        tokens: an image's, before pooling: class token and registers too, or the places of a map of features.
        layers: blocks that token states go through one after the other; None where there is no such list.
    """

    encoder: nn.Module
    classifier: nn.Linear | None
    architecture: str
    model_args: dict[str, Any]
    seen: dict[str, Any]
    width: int
    tokens: int
    layers: int | None


def locate_timm(options: Timm, asset_folder: Path, mirror: Path | None) -> Source:
    """The model's folder, fetched if need be, and what identifies θ₀, whose positions are those of ``image_size``.

    Raises:
        UserError: if it is not to be had, or not in timm's form.
    """
    source = locate(options.pretrained, options.revision, asset_folder, mirror=mirror)
    check_form(source.folder)
    resized = {} if options.image_size is None else {"image_size": options.image_size}
    return Source(source.folder, {**source.identity, **resized})


def is_timms(folder: Path) -> bool:
    """Whether a folder's configuration is timm's, and not transformers'."""
    config = read_config(folder)
    return isinstance(config.get("architecture"), str) and "model_type" not in config


def check_form(folder: Path) -> None:
    """Raise a UserError if a folder is not in timm's form, or of an architecture that this timm does not know."""
    import timm

    if not is_timms(folder):
        found = read_config(folder).get("model_type")
        raise UserError(
            "no model in timm's form", key="backbone.pretrained", found=f"{folder}, of model_type {found}" if found else folder,
            expected=FORM, hint="models of transformers' are taken by backbone=dinov2_small backbone.pretrained=FOLDER_OR_HUB_NAME",
        )  # fmt: skip
    name = read_config(folder)["architecture"]
    if not timm.is_model(name):
        raise UserError(
            "unknown architecture", key=f"{folder / CONFIG}: architecture", found=name, expected=f"a model of timm {timm.__version__}",
            nearest=nearest(name, timm.list_models()),
        )  # fmt: skip
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            "no weights of timm's", key="backbone.pretrained", found=folder, expected=FORM, hint="pickled weights are not read"
        )  # fmt: skip


def refuse_timms(folder: Path) -> None:
    """Raise a UserError if a folder that transformers is to read is in timm's form."""
    if is_timms(folder):
        raise UserError(
            "a model in timm's form, whose head transformers does not keep apart", key="backbone.name", found=f"image_classifier with {folder}",
            expected="timm", hint="backbone=timm_resnet50 backbone.pretrained=FOLDER_OR_HUB_NAME",
        )  # fmt: skip


@lru_cache(maxsize=1)
def start_of(folder: Path, image_size: int | None) -> Start:
    """θ₀, read once; see ``published``."""
    return published(folder, image_size)


def layers_to_read(folder: Path, image_size: int | None) -> int:
    """How many layers a router may read: the blocks that token states go through.

    Raises:
        UserError: if there are none.
    """
    from twin_merging.backbones.timm_model import no_layers

    start = start_of(folder, image_size)
    if start.layers is None:
        raise no_layers(start.architecture)
    return start.layers


def largest_rank(folder: Path) -> int | None:
    """The largest min(m, n) over the encoder's matrices; None of a convolutional one, which may have none beside its classifier."""
    from twin_merging.checkpoints import Checkpoint

    stored = Checkpoint(folder)
    named = read_config(folder).get("pretrained_cfg", {}).get("classifier") or ()
    heads = tuple(f"{name}." for name in ([named] if isinstance(named, str) else named))
    shapes = [stored.shape(name) for name in stored if not name.startswith(heads)]
    return max((min(shape) for shape in shapes if len(shape) == 2), default=None)


def published(folder: Path, image_size: int | None) -> Start:
    """A model in timm's form, its position embeddings resampled by timm to another ``image_size`` if one is given.

    All weights have to be in the file, the classifier's included: timm loads them strictly, but for an architecture or two
    (DLA), by its own rules for files of older versions.

    Raises:
        UserError: if a weight is missing or not finite, it sees no square images of three channels, or has no image vector.
    """
    import timm
    import torch
    from timm.data import resolve_data_config
    from timm.models import resolve_model_input_args

    check_form(folder)
    asked = {} if image_size is None else {"img_size": image_size}
    try:
        given = resolve_model_input_args(f"local-dir:{folder}", asked)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            # only a model of as many classes as the file's is loaded strictly
            classes = {"num_classes": given["pretrained_cfg"].get("num_classes")}
            model: Any = timm.create_model(pretrained=True, **{**given, **classes})
        seen = dict(resolve_data_config(asked, model=model))
        if getattr(model, "dynamic_img_size", False):
            # positions are resampled now, and not in each pass, where those of a routed model have a row an example
            model.set_input_size(seen["input_size"][1:])
    except Exception as error:  # timm's models raise whatever the layers of each one do
        raise _not_loaded(folder, image_size, error) from error
    _check_seen(folder, seen)
    _check_finite(folder, model)
    model.eval()
    try:
        pixels = torch.linspace(-1, 1, 3 * seen["input_size"][1] ** 2).view(1, *seen["input_size"])
        classifier = _without_classifier(model, pixels)
        width, tokens, layers = _shown(model, pixels)
    except Exception as error:
        raise _not_loaded(folder, image_size, error) from error
    arguments = {name: value for name, value in given.items() if name not in _OTHERS}
    return Start(model, classifier, given["model_name"], arguments, seen, width, tokens, layers)


_OTHERS = ("model_name", "pretrained_cfg", "pretrained_model_args", "num_classes", "img_size")


def _without_classifier(model: Any, pixels: Tensor) -> nn.Linear | None:
    """Take a model's classifier off; None if there is none, or no single linear layer of the pooled features."""
    import torch

    classifier = model.get_classifier()
    with torch.inference_mode():
        answer = model(pixels)
        model.reset_classifier(0)
        if not isinstance(classifier, torch.nn.Linear):
            return None
        return classifier if torch.allclose(classifier(model(pixels)), answer, rtol=1e-3, atol=1e-4) else None


def _shown(model: Any, pixels: Tensor) -> tuple[int, int, int | None]:
    """Width, tokens and layers of an image encoder, from a pass."""
    import torch

    from twin_merging.backbones.timm_model import is_tokens

    blocks, seen = getattr(model, "blocks", None) or [], []

    def see(_: nn.Module, args: tuple) -> None:
        seen.append(getattr(args[0], "shape", None) if args else None)

    hooks = [block.register_forward_pre_hook(see) for block in blocks]
    with torch.inference_mode():
        states = model.forward_features(pixels)
        pooled = model.forward_head(states)
    for hook in hooks:
        hook.remove()
    if not (isinstance(pooled, torch.Tensor) and pooled.dim() == 2):
        shape = list(pooled.shape) if isinstance(pooled, torch.Tensor) else type(pooled).__name__
        raise ValueError(f"its features are no vector an image, but {shape}")
    if not is_tokens(states):
        return pooled.shape[1], states[0].numel() // model.num_features if isinstance(states, torch.Tensor) else 1, None
    in_line = bool(seen) and seen == [states.shape] * len(blocks)
    return pooled.shape[1], states.shape[1], len(blocks) if in_line else None


def _check_seen(folder: Path, seen: dict[str, Any]) -> None:
    channels, height, width = seen["input_size"]
    if channels != 3 or height != width:
        raise UserError(
            "images are seen as squares of three channels", key=f"{folder / CONFIG}: input_size", found=list(seen["input_size"]),
            expected="[3, S, S]",
        )  # fmt: skip


def _check_finite(folder: Path, model: nn.Module) -> None:
    from twin_merging.checkpoints import check_finite

    for name, tensor in model.state_dict().items():
        check_finite(tensor, f"{folder / WEIGHTS}: {name}")


def _not_loaded(folder: Path, image_size: int | None, error: Exception) -> UserError:
    reason = " ".join((str(error) or type(error).__name__).split())
    size = "" if image_size is None else f" at {image_size} pixels"
    return UserError(
        f"timm cannot load it{size}: {reason[:300]}", key="backbone.pretrained" if image_size is None else "backbone.image_size",
        found=folder, expected=FORM,
    )  # fmt: skip
