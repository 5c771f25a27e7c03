"""python benchmarks/adamerging.py --json FILE: a step of layer-wise AdaMerging, ours against torch.func.functional_call.

CLIP's ViT-B/32 image encoder and eight task vectors, all random, and a batch of random images for each task. The ways:

- ``ours``: θ is written into the model, the batches of a few tasks at a time go forward and back, and dL/dλ = ⟨dL/dθ, τ⟩ at the
  end.
- ``functional_call``: θ₀ + Σ λ τ is one graph, all tasks run through it, and their sum goes back.
- ``functional_call, float32``: the same as it is published, without autocast; with ``--precision bf16``, which is what
  ``precision=auto`` takes on processors that have it.
- ``functional_call, merged for each task``: the same with a merge for every task's batch, as the published code has it.

Times are taken as the C library keeps memory by itself; but for the last way, for which it would keep more than 22 GB of what is
freed with eight tasks. That way's time, ours beside it, and all memory are taken when what is freed goes back at once.

FILE becomes a list of objects: ``way``, ``time_ratio`` (seconds of a step over ours; all ways run in turns, the least counts),
``memory_ratio`` (the highest memory of a step above the model and the task vectors, over ours), ``difference`` (the largest of
dL/dλ from ours, over the largest of ours).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import memory
import open_clip
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from twin_merging.backbones.clip_model import ClipConfig, ImageEncoder
from twin_merging.backbones.products import faster_products
from twin_merging.merging.adamerging import Mixture, entropy

CLASSES = (397, 196, 45, 10, 10, 43, 10, 47)  # of the paper's eight tasks
OURS, EACH = "ours", "functional_call, merged for each task"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--model", default="ViT-B-32", help="open_clip's name of it")
    parser.add_argument("--tasks", type=int, default=len(CLASSES))
    parser.add_argument("--batch", type=int, default=16, help="images a task")
    parser.add_argument("--rows-at-once", type=int, default=32, help="that ours takes through the encoder")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()

    torch.manual_seed(0)
    made = open_clip.get_model_config(asked.model)
    config = ClipConfig(embed_dim=made["embed_dim"], vision=made["vision_cfg"], quick_gelu=bool(made.get("quick_gelu")))
    encoder = ImageEncoder(config).to(asked.device).eval()
    own = dict(encoder.named_parameters())
    deltas = {
        name: torch.randn(asked.tasks, *base.shape, device=asked.device).mul_(0.01 * base.detach().std())
        for name, base in own.items()
    }
    heads = [10 * F.normalize(torch.randn(classes, config.embed_dim), dim=-1) for classes in CLASSES[: asked.tasks]]
    side = made["vision_cfg"]["image_size"]
    images = [torch.randn(asked.batch, 3, side, side, device=asked.device) for _ in heads]
    heads = [head.to(asked.device) for head in heads]
    rounds = asked.precision == "bf16"
    passes = -(-asked.tasks // max(1, asked.rows_at_once // asked.batch))

    def loss(output: Tensor, head: Tensor) -> Tensor:
        return entropy(F.normalize(output.float(), dim=-1) @ head.T).mean()

    def autocast(enabled: bool = rounds) -> torch.autocast:
        return torch.autocast(torch.device(asked.device).type, torch.bfloat16, enabled=enabled)

    mixture = Mixture(own, deltas)
    bases = {name: base.detach().clone() for name, base in own.items()}

    def ours(coefficients: Tensor) -> Tensor:
        mixture.write(coefficients)
        with faster_products(encoder, rounds, repeated=True):
            for some in torch.arange(asked.tasks).tensor_split(passes):
                with autocast():
                    output = encoder(torch.cat([images[task] for task in some]), tokens=False).pooler_output
                    parts = output.split(asked.batch)
                    mine = [loss(part, heads[task]) for part, task in zip(parts, some, strict=True)]
                torch.stack(mine).sum().backward()
        return mixture.gradient()

    def merged(coefficients: Tensor) -> dict[str, Tensor]:
        return {
            name: base + sum(tau * w for tau, w in zip(deltas[name], column, strict=True))
            for (name, base), column in zip(bases.items(), coefficients.T, strict=True)
        }

    def plain(each: bool, rounds: bool) -> Callable[[Tensor], Tensor]:
        def step(coefficients: Tensor) -> Tensor:
            for parameter in own.values():
                parameter.grad = None
            coefficients = coefficients.clone().requires_grad_()
            weights, total = None if each else merged(coefficients), torch.zeros((), device=asked.device)
            for batch, head in zip(images, heads, strict=True):
                with autocast(rounds):
                    output = functional_call(encoder, weights or merged(coefficients), (batch,)).pooler_output
                    total = total + loss(output, head)
            total.backward()
            assert coefficients.grad is not None
            return coefficients.grad

        return step

    def seconds_of(way: str, step: Callable[[Tensor], Tensor]) -> float:
        for parameter in own.values():
            parameter.grad = None
        begun = time.perf_counter()
        found[way] = step(start).cpu()
        return time.perf_counter() - begun

    device, found = torch.device(asked.device).type, dict[str, Tensor]()
    start = mixture.new_full(mixture.shape, 0.3)
    once = {OURS: ours, "functional_call": plain(False, rounds)}
    if rounds:
        once["functional_call, float32"] = plain(False, rounds=False)
    timed = [{way: seconds_of(way, step) for way, step in once.items()} for _ in range(asked.repeats)]
    memory.give_back_at_once()
    rows, peaks = [], dict[str, int | None]()
    for _ in range(asked.repeats):
        rows.append({})
        for way, step in {**once, EACH: plain(True, rounds)}.items():
            before = memory.settled(device)
            rows[-1][way] = seconds_of(way, step)
            peaks[way] = memory.added_since(before, device)
    ways_found = [
        {
            "way": way, "time_ratio": round(_least(way, of := rows if way == EACH else timed) / _least(OURS, of), 2),
            "memory_ratio": peak and round(peak / peaks[OURS], 2),
            "difference": float((found[way] - found[OURS]).abs().max() / found[OURS].abs().max()),
        }
        for way, peak in peaks.items()
    ]  # fmt: skip
    asked.json.write_text(json.dumps(ways_found, indent=1))
    print(*map(json.dumps, ways_found), sep="\n")


def _least(way: str, rounds: list[dict[str, float]]) -> float:
    return min(seconds[way] for seconds in rounds)


if __name__ == "__main__":
    main()
