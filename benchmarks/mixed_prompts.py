"""python benchmarks/mixed_prompts.py --json FILE [arguments of run.py]: prompts of several tasks answered in batches.

The prompts that ``run.py +exp=generative_smollm2`` asks, of each task as many, and its language model in float32 with random
knowledge of rank 16 in the blocks' matrices for each task, so that nothing is trained. Every prompt has weights of its own, which
leave no task out. FILE becomes a list of objects: ``way``, ``batch``, ``ratio_to_batch`` (its time over that of the twin's
batches; all ways run in turns, and the least time counts), ``same_tokens`` (whether it gives the answers of the twin's batches;
null for the static model).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from routed_ways import knowledge, soft

from twin_merging.compose import compose_each
from twin_merging.config import Exact
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.pipeline.cache import Cache
from twin_merging.pipeline.graph import graph_of
from twin_merging.pipeline.language.read import backbone_of, prompts_of
from twin_merging.tasks.generation import Request

RANK = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--batch", type=int, default=8, help="prompts in a batch")
    parser.add_argument("--prompts", type=int, default=16, help="of all tasks together")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--repeats", type=int, default=3)
    asked, overrides = parser.parse_known_args()

    settings = ["+exp=generative_smollm2", "merge_method=twin", "backbone.dtype=float32", "precision=fp32"]
    (run,) = compose_each([[*settings, *overrides]])
    stages = graph_of(run, Cache(Path(run.paths.cache), run.cache))
    backbone = backbone_of(stages)
    each = -(-asked.prompts // len(stages.names))
    of_tasks = zip(*(prompts_of(stages, name)[:each] for name in stages.names), strict=True)
    requests = [Request(prompt, asked.tokens) for together in of_tasks for prompt in together][: asked.prompts]
    lengths = [len(ids) for ids in backbone.tokenize([request.prompt for request in requests])]
    print(f"{len(requests)} prompts of {min(lengths)} to {max(lengths)} tokens, {median(lengths)} in the middle")

    plain, weights = backbone.load(), soft(len(requests), len(stages.names))
    deltas = {name: delta for name, delta in knowledge(plain, len(stages.names), RANK).items() if ".layers." in name}
    twin = TwinMergedModel(backbone.load(), deltas, Exact())

    def answers(model: torch.nn.Module, batch: int, given: torch.Tensor | None = None) -> list[str]:
        return backbone.complete(model, requests, batch, f"batches of {batch}", given, ends=())

    def merged_in_turn() -> list[str]:
        found = []
        for request, w in zip(requests, weights, strict=True):
            merged.load_state_dict(twin.merge_for(w), strict=False)
            found += backbone.complete(merged, [request], 1, "merged", ends=())
        return found

    merged = backbone.load()
    ways: dict[tuple[str, int], Callable[[], list[str]]] = {
        ("twin", asked.batch): lambda: answers(twin, asked.batch, weights),
        ("twin", 1): lambda: answers(twin, 1, weights),
        ("a merged model for each prompt", 1): merged_in_turn,
        ("static", asked.batch): lambda: answers(plain, asked.batch),
        ("static", 1): lambda: answers(plain, 1),
    }
    seconds: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
    given: dict[tuple[str, int], list[str]] = {}
    for _ in range(asked.repeats):
        for way, answer in ways.items():
            start = time.perf_counter()
            given[way] = answer()
            seconds[way].append(time.perf_counter() - start)
    ours = ("twin", asked.batch)
    rows = [
        {
            "way": name, "batch": batch, "ratio_to_batch": round(min(seconds[name, batch]) / min(seconds[ours]), 2),
            "same_tokens": None if name == "static" else given[name, batch] == given[ours],
        }
        for name, batch in ways
    ]  # fmt: skip
    asked.json.write_text(json.dumps(rows, indent=1))
    print(*map(json.dumps, rows), sep="\n")


if __name__ == "__main__":
    main()
