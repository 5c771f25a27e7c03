"""Made-up results: for arithmetic and layout, never for a claim about a method."""

from __future__ import annotations

import random
from typing import Any

TASKS = {
    "rotten_tomatoes": "accuracy",
    "bbc": "accuracy",
    "20newsgroups": "accuracy",
    "reuters_r8": "accuracy",
    "election-tweets-2016": "accuracy",
    "vader_tweets": "pearson",
}


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
