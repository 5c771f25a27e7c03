"""Made-up results: for arithmetic and layout, never for a claim about a method."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TASKS = {
    "rotten_tomatoes": "accuracy",
    "bbc": "accuracy",
    "20newsgroups": "accuracy",
    "reuters_r8": "accuracy",
    "election-tweets-2016": "accuracy",
    "vader_tweets": "pearson",
}


def is_drawn(path: Path) -> bool:
    """Whether there is ink on the picture, and none at its edge, where it would be cut."""
    pixels = np.asarray(Image.open(path).convert("L"), dtype=float)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return pixels.std() > 10 and bool((edge == 255).all())


def make_result(
    label: str = "twin (svd rank 16)",
    heads: str = "oracle",
    seed: int = 0,
    tasks: dict[str, str] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A whole results.json; equal arguments give equal numbers."""
    tasks = TASKS if tasks is None else tasks
    numbers = random.Random(f"{label}{heads}{seed}")
    rows = {name: _task(name, metric, numbers) for name, metric in tasks.items()}
    normalized = [row["normalized"] for row in rows.values()]
    result = {
        "schema_version": 1, "exp": "quickstart", "suite": "offline_text", "backbone": "minilm", "label": label,
        "merge_method": label.split()[0], "heads": heads, "seed": seed, "status": "done",
        "average_normalized": sum(normalized) / len(normalized),
        "average_raw": sum(row["raw"] for row in rows.values()) / len(rows),
        "reference": "finetuned expert of each task, own head, same test rows",
        "bytes_stored": 90_853_912, "seconds": 12.25, "peak_memory": 2**30, "offline_suite": True,
        "tasks": rows, "routing": make_routing(list(tasks)) if label.startswith("twin") else None, "choices": [],
        "stages": [], "provenance": {"config": {"seed": seed}, "overrides": [f"seed={seed}"]},
    }  # fmt: skip
    return result | changes


def make_routing(names: list[str]) -> dict[str, Any]:
    """Routing that is mostly right: the more so, the later the task."""
    count = len(names)
    right = [0.7 + 0.3 * index / max(count - 1, 1) for index in range(count)]
    weights = [
        [right[true] if true == expert else (1 - right[true]) / max(count - 1, 1) for expert in range(count)]
        for true in range(count)
    ]
    return {
        "accuracy": sum(right) / count, "temperature": 1.0, "holdout_accuracy": 0.9, "task_names": names,
        "confusion": [[round(200 * weight) for weight in row] for row in weights], "mean_weights": weights,
    }  # fmt: skip


def make_results(count: int = 10) -> list[dict[str, Any]]:
    """A multirun of ``count`` jobs, half of the twins with routed heads."""
    labels = ["pretrained", "weight_averaging", "task_arithmetic (λ=0.4)", "twin (svd rank 1)", "twin (svd rank 16)"]
    cells = [(label, heads) for label in labels for heads in ("oracle", "routed")]
    return [make_result(label, heads) for label, heads in cells[:count]]


def _task(name: str, metric: str, numbers: random.Random) -> dict[str, Any]:
    reference = random.Random(name).uniform(0.7, 0.95)
    raw = reference * numbers.uniform(0.5, 1.0)
    return {
        "metric": metric, "raw": raw, "reference": reference, "normalized": 100 * raw / reference, "rows": 600,
        "confidence_interval": [raw - 0.03, raw + 0.03],
    }  # fmt: skip


def make_costs(after_experts: int = 46_500, seconds: float = 21.0) -> dict[str, Any]:
    """What results.json says of costs: 90 MB of encoder, 28 of exclusive knowledge and router."""
    sizes = {"encoder": 22_565_376, "exclusive": 6_000_000, "router": 900_000, "heads": 10_000}
    return {
        "stored": {part: {"parameters": count, "bytes": 4 * count} for part, count in sizes.items()},
        "training_tokens": {
            "experts": 384_100, "multitask": 0, "router": after_experts, "learned": 0, "after_experts": after_experts,
        },
        "making": {"seconds": seconds, "peak_memory": 2**30},
    }  # fmt: skip


def make_inference(ratio: float = 1.25, machine: str = "cpu: slow, 2 threads") -> dict[str, Any]:
    """Seconds per 1000 items beside a static encoder's."""
    return {
        "rows": 64, "tokens": 1500, "batch_size": 64, "rounds": 7, "seconds_per_1000": 2 * ratio, "static_seconds_per_1000": 2.0,
        "ratio": ratio, "machine": machine,
    }  # fmt: skip


def make_task_unknown(tasks: list[str] | None = None, new_domain: bool = True, mixed: bool = True) -> dict[str, Any]:
    """What ``evaluation=task_unknown`` adds to a result, of classification tasks with 200 test rows each."""
    names = list(TASKS)[:5] if tasks is None else tasks
    routing, count = make_routing(names), len(names)
    shares = [0.0, 0.1, 0.4]
    return {
        "stream": {"rows": 200 * count, "seed": 0, "task_names": names},
        "router": {
            "counts": routing["confusion"], "shares": routing["mean_weights"], "accuracy": routing["accuracy"],
            "by_task": [routing["mean_weights"][index][index] for index in range(count)], "calibration": _calibration(200 * count, 0.05),
        },
        "answers": {"head": _calibration(180 * count, 0.1), "head_and_router": _calibration(180 * count, 0.15)},
        "cost": {
            "average_normalized": {"oracle": 98.0, "routed": 95.0, "rescued": 98.5},
            "tasks": {name: _cost(index, mixed) for index, name in enumerate(names)},
        },
        "noise": [
            {
                "share": share, "accuracy": 0.98 - share / 4, "by_task": {name: 0.99 - share / 3 for name in names}, "ece": share / 2,
                "confidence": 0.97 - share,
            }
            for share in shares
        ],
        "new_domain": {name: _left_out(name, names) for name in names} if new_domain else None,
    }  # fmt: skip


def _calibration(rows: int, ece: float) -> dict[str, Any]:
    bins = [
        {
            "low": index / 15, "high": (index + 1) / 15, "rows": 3 if index == 5 else rows // 15 if index > 5 else 0,
            "confidence": (index + 0.5) / 15 if index >= 5 else None, "accuracy": min(1.0, (index + 0.5) / 15 + ece) if index >= 5 else None,
        }
        for index in range(15)
    ]  # fmt: skip
    return {"rows": rows, "ece": ece, "confidence": 0.8, "accuracy": 0.8 + ece, "bins": bins}


def _cost(index: int, mixed: bool) -> dict[str, Any]:
    oracle, routed, rescued = 0.9, 0.9 - 0.01 * index, 0.915 if mixed else 0.9
    correct = {"expert": 8, "oracle": 6, "routed": 1}
    return {
        "metric": "accuracy", "rows": 200, "wrong": 10, "lost": rescued - routed, "lost_by_heads": oracle - routed,
        "lost_by_weights": rescued - oracle if mixed else None,
        "score": {"expert": 0.93, "oracle": oracle, "routed": routed, "rescued": rescued},
        "right_routes": {"rows": 190, "correct": dict.fromkeys(correct, 170)}, "wrong_routes": {"rows": 10, "correct": correct},
    }  # fmt: skip


def _left_out(name: str, names: list[str]) -> dict[str, Any]:
    others = [other for other in names if other != name]
    spread = {"histogram": [0.05] * 20}
    return {
        "rows": 200, "goes_to": {other: 200 if other == others[0] else 0 for other in others}, "accuracy": 0.99, "auroc": 0.85,
        "new": {"quantiles": [0.4, 0.6, 0.8, 0.9, 0.99], **spread}, "known": {"quantiles": [0.9, 0.98, 0.99, 0.999, 1.0], **spread},
    }  # fmt: skip
