"""The router in numpy, in evaluation mode."""

from __future__ import annotations

import numpy as np


def forward(state: dict[str, np.ndarray], features: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """w(x): (rows, T), from a state of ``layers.0`` linear, ``1`` norm, ``4`` linear, ``5`` norm, ``8`` linear."""
    state = {name: np.asarray(value, np.float64) for name, value in state.items()}
    x = np.asarray(features, np.float64)
    for linear, norm in ((0, 1), (4, 5)):
        x = leaky_relu(batch_norm(affine(x, state, linear), state, norm))
    return softmax(affine(x, state, 8) / temperature)


def affine(x: np.ndarray, state: dict[str, np.ndarray], layer: int) -> np.ndarray:
    return x @ state[f"layers.{layer}.weight"].T + state[f"layers.{layer}.bias"]


def batch_norm(x: np.ndarray, state: dict[str, np.ndarray], layer: int) -> np.ndarray:
    mean, variance = state[f"layers.{layer}.running_mean"], state[f"layers.{layer}.running_var"]
    return (x - mean) / np.sqrt(variance + 1e-5) * state[f"layers.{layer}.weight"] + state[f"layers.{layer}.bias"]


def leaky_relu(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, x, 0.01 * x)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
