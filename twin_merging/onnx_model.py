"""A DINOv2 encoder in an ONNX file as an ordinary Hugging Face folder, whose weights can be merged and fine-tuned."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from twin_merging.errors import UserError
from twin_merging.onnx_weights import Graph, Node, read_graph

ENCODER = "backbone."
HEAD_WIDTH = 64  # of every DINOv2; the file says it in reshapes alone
PREPROCESSOR = {  # as DINOv2 was published
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def convert(file: Path, folder: Path) -> None:
    """Write config, weights (safetensors, float32) and image preprocessing of the encoder; what follows it is left out.

    Position embeddings keep the size that they were trained at, from which the model interpolates to any other.

    Args:
        file: an ONNX export of a module whose ``backbone`` is a ``Dinov2Model``.
        folder: which is made.

    Raises:
        UserError: if the file cannot be read as such, or a parameter of the model is missing, superfluous or of a wrong shape.
    """
    from safetensors.numpy import save_file
    from transformers import Dinov2Config

    weights = encoder_weights(read_graph(file), str(file))
    about = {**_sizes(weights, str(file)), "architectures": ["Dinov2Model"], "use_mask_token": False}
    config = Dinov2Config.from_dict(about)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=1), encoding="utf-8")
    _check_loads(folder, str(file))
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes for its owner alone, and an asset folder may serve a group


def encoder_weights(graph: Graph, key: str) -> dict[str, np.ndarray]:
    """The encoder's parameters under the names of ``Dinov2Model`` on the hub.

    An export keeps the names of most parameters. It stores a linear layer's weight transposed and without a name, which
    here is that of the bias added to the product; and position embeddings in two parts: for the class token, which the
    graph concatenates, and for the patches, which it reshapes.

    Raises:
        UserError: naming ``key`` if a part of the graph is not found exactly once.
    """
    weights = graph.weights
    found = {name.removeprefix(ENCODER): value for name, value in weights.items() if name.startswith(ENCODER)}
    users: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in node.inputs:
            users.setdefault(name, []).append(node)
    for node in graph.nodes:
        if node.operation == "MatMul" and len(node.inputs) == 2 and node.inputs[1] in weights:
            name = _bias_after(node, users, weights, key).removeprefix(ENCODER).removesuffix("bias") + "weight"
            if name in found:
                raise UserError("two weights for one parameter", key=key, found=name)
            found[name] = np.ascontiguousarray(weights[node.inputs[1]].T)
    parts = [_only_weight(graph, operation, key) for operation in ("Concat", "Reshape")]
    if any(part.ndim != 3 or part.shape[::2] != parts[0].shape[::2] for part in parts):
        raise _unlike(key, "position embeddings", [part.shape for part in parts])
    found["embeddings.position_embeddings"] = np.concatenate(parts, axis=1)
    return found


def _bias_after(node: Node, users: Mapping[str, list[Node]], weights: Mapping[str, np.ndarray], key: str) -> str:
    added = [name for user in users.get(node.outputs[0], ()) if user.operation == "Add" for name in user.inputs]
    biases = [name for name in added if name in weights and name.startswith(ENCODER) and name.endswith(".bias")]
    if len(biases) != 1:
        raise _unlike(key, f"the bias after {node.name}", biases)
    return biases[0]


def _only_weight(graph: Graph, operation: str, key: str) -> np.ndarray:
    """The one nameless weight that is the first input of such an operation."""
    nodes = [node for node in graph.nodes if node.operation == operation and node.inputs]
    names = {node.inputs[0] for node in nodes if node.inputs[0] in graph.weights}
    if len(names) != 1:
        raise _unlike(key, f"a weight that is the input of {operation}", sorted(names))
    return graph.weights[names.pop()]


def _sizes(weights: Mapping[str, np.ndarray], key: str) -> dict[str, int]:
    """What a Dinov2Config says, from the shapes."""
    try:
        width, channels, patch, _ = weights["embeddings.patch_embeddings.projection.weight"].shape
        hidden = weights["encoder.layer.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise _unlike(key, "patch embeddings of four axes, and layers", error) from error
    layers = {name.split(".")[2] for name in weights if name.startswith("encoder.layer.")}
    side = math.isqrt(weights["embeddings.position_embeddings"].shape[1] - 1)
    return {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": side * patch,
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "mlp_ratio": hidden // width,
    }


def _check_loads(folder: Path, key: str) -> None:
    """Load the folder: no parameter may be left as it was initialised."""
    from transformers import Dinov2Model
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        loaded: Any = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unlike(key, "weights of a Dinov2Model", error) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loaded[1][kind]:
            raise _unlike(key, "weights of a Dinov2Model", f"{kind}: {sorted(loaded[1][kind])[:5]}")


def _unlike(key: str, expected: str, found: object) -> UserError:
    return UserError("no export of a Dinov2Model", key=key, found=found, expected=expected)
