"""python benchmarks/dynamic.py --json FILE: a batch under weights of its own for each example, against the static model.

A RoBERTa-base-size encoder of random numbers, T = 8 experts, 32 examples of 128 tokens; then text generation at the size of
SmolLM2-135M. All ways run in turns in one process on the same batch. FILE becomes a list of objects: ``case``, ``rank``,
``plan``, ``ratio_to_static`` (its median time over the static model's), ``max_abs_diff`` (of the output, from merging a model
for each example; null where none is computed; of generated tokens the share that differs), ``peak_ratio`` (the memory that it
adds, over what the static model adds).
A picture of the ratios by rank and by experts is put beside FILE.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import memory
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

from twin_merging.config import Exact
from twin_merging.config import MlpRouter as RouterOptions
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.routers.mlp import MlpRouter
from twin_merging.sparsifiers.svd import Factors

RANKS = (1, 4, 16, 64, 76)
PLANS = ("auto", "factored", "dense")
Ways = dict[str, Callable[[], Tensor]]


def roberta() -> nn.Module:
    """An encoder of RoBERTa-base's size."""
    torch.manual_seed(0)
    return RobertaModel(RobertaConfig(attn_implementation="sdpa"), add_pooling_layer=False).eval()


def smollm2() -> nn.Module:
    """A language model of SmolLM2-135M's size."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(10)  # so that rounding does not decide between two tokens
    return model


def knowledge(model: nn.Module, experts: int, rank: int) -> dict[str, Factors | Tensor]:
    """v_t of every parameter as small random numbers: factors of matrices, whole vectors."""
    generator, found = torch.Generator().manual_seed(rank), {}

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            m, n = parameter.shape
            found[name] = Factors(
                drawn(experts, m, rank) / m**0.5, torch.full((experts, rank), 0.2), drawn(experts, n, rank) / n**0.5
            )
        else:
            found[name] = 0.01 * drawn(experts, *parameter.shape)
    return found


def soft(examples: int, experts: int) -> Tensor:
    """Weights that leave no expert out."""
    return torch.randn(examples, experts, generator=torch.Generator().manual_seed(1)).softmax(-1)


def one_at_a_time(twin: TwinMergedModel, model: nn.Module, weights: Tensor, run: Callable) -> Tensor:
    """The paper's way: for each example the weights are merged from the factors and loaded, and it is answered alone."""
    outputs = []
    for row, w in enumerate(weights):
        model.load_state_dict(twin.merge_for(w))
        outputs.append(run(model, slice(row, row + 1)))
    return torch.cat(outputs)


def encoder_ways(rank: int, experts: int, examples: int, tokens: int, plans: tuple[str, ...], slow: bool) -> Ways:
    """Every way to answer one batch."""
    ids = torch.randint(4, 50000, (examples, tokens), generator=torch.Generator().manual_seed(2))
    mask, static, deltas = torch.ones_like(ids), roberta(), knowledge(roberta(), experts, rank)
    diffuse = soft(examples, experts)
    top = torch.zeros_like(diffuse).scatter(1, diffuse.argmax(1, keepdim=True), 1.0)

    def run(model: nn.Module, rows: slice = slice(None)) -> Tensor:
        return model(input_ids=ids[rows], attention_mask=mask[rows]).last_hidden_state

    ways: Ways = {"static": lambda: run(static)}
    for plan in plans:
        twin = TwinMergedModel(roberta(), deltas, Exact(plan=plan, memory="3GB"))
        ways[plan] = lambda twin=twin: twin(input_ids=ids, attention_mask=mask, weights=diffuse).last_hidden_state
    first = TwinMergedModel(roberta(), deltas, Exact(plan="gathered"))
    ways["top-1 gathered"] = lambda: first(input_ids=ids, attention_mask=mask, weights=top).last_hidden_state
    for name, layer in (("routed by the last layer", -1), ("routed by layer 1, in one pass", 1)):
        router = MlpRouter(RouterOptions(layer=layer), 768, experts).eval()
        routed = TwinMergedModel(roberta(), deltas, Exact(memory="1KB"), router)
        ways[name] = lambda routed=routed: routed.answer(input_ids=ids, attention_mask=mask).last_hidden_state
    if slow:
        own = roberta()
        ways["one at a time"] = lambda: one_at_a_time(first, own, diffuse, run)
    return ways


def decoding_ways(rank: int, new: int, slow: bool) -> Ways:
    """Every way to go on from eight prompts."""
    ids = torch.randint(4, 40000, (8, 32), generator=torch.Generator().manual_seed(2))
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    static, deltas, weights = smollm2(), knowledge(smollm2(), 8, rank), soft(8, 8)
    twin = TwinMergedModel(smollm2(), deltas, Exact(memory="1KB"))

    def run(model: nn.Module, rows: slice = slice(None)) -> Tensor:
        return model.generate(input_ids=ids[rows], attention_mask=torch.ones_like(ids[rows]), **settings)

    ways: Ways = {
        "static": lambda: run(static),
        "auto": lambda: twin.generate(ids, weights, attention_mask=torch.ones_like(ids), **settings),
    }
    if slow:
        own = smollm2()
        ways["one at a time"] = lambda: one_at_a_time(twin, own, weights, run)
    return ways


def measure(case: str, rank: int, ways: Ways, repeats: int) -> list[dict]:
    """A row for each way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks, found = {}, {}
    for turn in range(repeats + 1):  # the first one warms up
        for name, way in ways.items():
            if name == "one at a time" and turn > 1:
                continue
            before, start = memory.settled(), time.perf_counter()
            found[name] = way()
            seconds[name].append(time.perf_counter() - start)
            peaks[name] = memory.added_since(before)
    times = {name: median(each[1:]) for name, each in seconds.items()}
    exact, rows = found.get("one at a time"), []
    for name in ways:
        compared = exact is not None and name in (*PLANS, "one at a time")
        peak, usual = peaks[name], peaks["static"]
        difference = None
        if compared:
            difference = float(
                (found[name] - exact).abs().max()
                if exact.is_floating_point()
                else (found[name] != exact).float().mean()
            )
        rows.append(
            {
                "case": case, "rank": rank, "plan": name, "ratio_to_static": round(times[name] / times["static"], 3),
                "max_abs_diff": difference,
                "peak_ratio": None if peak is None or usual is None else round(peak / usual, 2),
            }
        )  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def draw(rows: list[dict], file: Path) -> None:
    """The ratio by rank, and by the number of experts."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    by_experts = [row for row in rows if row["case"].startswith("experts")]
    sides = (
        ("encoder", "rank of v_t", lambda row: row["rank"]),
        ("experts", "experts", lambda row: int(row["case"].split()[1])),
    )
    for axis, (case, label, place) in zip(axes, sides, strict=True):
        chosen = [row for row in rows if row["case"].startswith(case)] if case == "encoder" else by_experts
        for plan in dict.fromkeys(row["plan"] for row in chosen):
            if plan not in ("static", "one at a time"):
                points = [(place(row), row["ratio_to_static"]) for row in chosen if row["plan"] == plan]
                axis.plot(*zip(*points, strict=True), marker="o", label=plan)
        axis.axhline(1, color="grey", linestyle=":")
        axis.set(xlabel=label, ylabel="time over the static model's")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--only", default="", help="cases whose name starts with this: encoder, tokens, experts, decoding"
    )
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows: list[dict] = []

    def add(case: str, rank: int, make: Callable[[], Ways]) -> None:
        if case.startswith(asked.only):
            rows.extend(measure(case, rank, make(), asked.repeats))
            asked.json.write_text(json.dumps(rows, indent=1))

    with torch.inference_mode():
        for rank in RANKS:
            add(f"encoder, rank {rank}", rank, lambda rank=rank: encoder_ways(rank, 8, 32, 128, PLANS, rank == 16))
        for tokens in (16, 64, 256):
            add(f"tokens {tokens}", 16, lambda tokens=tokens: encoder_ways(16, 8, 16, tokens, ("auto",), False))
        for experts in (2, 4, 8, 16, 32):
            add(f"experts {experts}", 16, lambda experts=experts: encoder_ways(16, experts, 16, 128, PLANS, False))
        for rank in (1, 16):
            add(f"decoding 64 tokens, rank {rank}", rank, lambda rank=rank: decoding_ways(rank, 64, rank == 16))
    if rows and not asked.only:
        draw(rows, asked.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
