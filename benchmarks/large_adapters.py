"""python benchmarks/large_adapters.py: a twin of adapters on a language model of 1.1 billion parameters, under a memory limit.

A Llama of random numbers in bfloat16 and four LoRA adapters of rank 16 on all its linear layers are made in a folder (5 GB of
disk), then ``merge.py merge_method=twin`` runs in a process that may have no more memory of its own than ``--limit`` times the
bytes of the base; files that are mapped do not count. Another process then answers four prompts under weights of their own, in
bfloat16. Prints one JSON object: ``parameters``, ``base_bytes``, ``limit``, ``exclusive_ratio``, the bytes of all experts' exclusive
knowledge over those of the base, and ``answer_ratio``, the largest memory of the process that answers over them. Exit code 1: it did
not fit.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[1]
EXPERTS, RANK = 4, 16


ANSWER = """
import resource, sys
import torch
from twin_merging.dynamic.model import TwinMergedModel
model = TwinMergedModel.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
tokens = model.generate(torch.randint(2, 30000, (4, 16)), torch.eye(4), max_new_tokens=4, pad_token_id=0)
assert tokens.shape == (4, 20)
print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def make(folder: Path) -> tuple[int, int]:
    """The base and its adapters; its parameters and bytes."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "base")
    for number in range(EXPERTS):
        adapted = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear"))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.01)
        adapted.save_pretrained(folder / f"expert{number}")
        model = adapted.unload()
    return sum(parameter.numel() for parameter in model.parameters()), _bytes(folder / "base")


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=0.5, help="memory over the base's bytes")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        parameters, size = make(folder)
        most = int(asked.limit * size)
        experts = ",".join(str(folder / f"expert{number}") for number in range(EXPERTS))
        command = [
            sys.executable, str(ROOT / "merge.py"), f"base={folder / 'base'}", f"experts=[{experts}]", "merge_method=twin",
            f"sparsifier.rank={RANK}", f"out={folder / 'twin'}",
        ]  # fmt: skip
        limited = subprocess.run(command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (most, most)))
        if limited.returncode:
            return 1
        exclusive = _bytes(folder / "twin") / size
        answered = subprocess.run(
            [sys.executable, "-c", ANSWER, str(folder / "twin")], check=True, stdout=subprocess.PIPE, text=True
        )
        peak = int(answered.stdout.split()[-1])
    found = {
        "parameters": parameters, "base_bytes": size, "limit": asked.limit, "exclusive_ratio": round(exclusive, 3),
        "answer_ratio": round(peak / size, 2),
    }  # fmt: skip
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
