"""python benchmarks/merging.py --json FILE: whole merges of eight RoBERTa-base-size checkpoints, ours against others.

Every implementation runs as a process of its own on the same files, in turns, and is compared in the same run: the
processor seconds and the highest anonymous memory of the process (pages of the checkpoints themselves, which the system
can drop at any time, do not count). FILE becomes a list of objects: ``case``, ``implementation``, ``ratio_to_ours`` (its
seconds over ours), ``peak_ratio`` (its peak over ours), ``wall_ratio``, and ``error``, the largest difference from ours.
Ours is measured against copying the bytes that it reads and writes to the disk too, and against importing torch and doing
nothing. The decompositions of ``svd.py`` follow.

mergekit is installed into a virtual environment of its own (``--mergekit``), which is made if it does not exist.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
MERGEKIT = "mergekit==0.1.5"
COPY = "cat {experts} > /dev/null && cp {base}/model.safetensors {out} && sync -d {out}/model.safetensors"
DENSITY, DROP, SCALING = 0.2, 0.7, 0.3

# case: our overrides; mergekit's method, parameters, and parameters of each model; the loop's name
CASES = {
    "weight averaging": (["merge_method=weight_averaging"], ("linear", {}, {"weight": 1.0}), "average"),
    "task arithmetic": (
        ["merge_method=task_arithmetic", f"merge_method.scaling={SCALING}"],
        ("task_arithmetic", {"lambda": SCALING}, {"weight": 1.0}), "task_arithmetic",
    ),
    "dare": (
        ["merge_method=dare_task_arithmetic", f"merge_method.drop_rate={DROP}", f"merge_method.scaling={SCALING}"],
        ("dare_linear", {"lambda": SCALING, "normalize": False}, {"weight": 1.0, "density": 1 - DROP}), None,
    ),
    "ties, threshold per tensor": (
        ["merge_method=ties", f"merge_method.density={DENSITY}", "merge_method.threshold=per_tensor"],
        ("ties", {"lambda": 1.0, "normalize": True}, {"weight": 1.0, "density": DENSITY}), "ties_per_tensor",
    ),
    "ties, global threshold": (
        ["merge_method=ties", f"merge_method.density={DENSITY}", "merge_method.threshold=global"], None, "ties_global",
    ),
}  # fmt: skip


@dataclass
class Cost:
    """What runs of one command took: processor seconds, wall-clock seconds, bytes."""

    processor: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    peak: list[int] = field(default_factory=list)


def generate(folder: Path, experts: int) -> list[Path]:
    """A RoBERTa-base-size model and ``experts`` fine-tuned ones, as Hugging Face folders; made once."""
    folders = [folder / "base", *(folder / f"expert{number}" for number in range(experts))]
    if all((each / "model.safetensors").exists() for each in folders):
        return folders
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import RobertaConfig, RobertaForMaskedLM

    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    RobertaForMaskedLM(config).save_pretrained(folders[0])
    base = load_file(folders[0] / "model.safetensors")
    for each in folders[1:]:
        each.mkdir(parents=True, exist_ok=True)
        (each / "config.json").write_text((folders[0] / "config.json").read_text())
        tensors = {name: tensor + 1e-3 * torch.randn_like(tensor) for name, tensor in base.items()}
        save_file(tensors, each / "model.safetensors", {"format": "pt"})
    return folders


def commands(case: str, folders: list[Path], work: Path, mergekit: Path) -> dict[str, list[str]]:
    """Each implementation's command line for a case; its result goes to ``work/IMPLEMENTATION``."""
    overrides, theirs, loop = CASES[case]
    base, *experts = folders
    listed = ",".join(str(expert) for expert in experts)
    found = {
        "ours": [
            sys.executable, str(ROOT / "merge.py"), f"base={base}", f"experts=[{listed}]", f"out={work / 'ours'}", *overrides
        ]
    }  # fmt: skip
    if theirs is not None:
        method, parameters, of_each = theirs
        models = [{"model": str(expert), "parameters": of_each} for expert in experts]
        recipe: dict = {"merge_method": method, "models": models, "parameters": parameters, "dtype": "float32"}
        if method != "linear":
            recipe["base_model"] = str(base)
        path = work / f"{method}.json"  # JSON is YAML too
        path.write_text(json.dumps(recipe))
        found["mergekit"] = [str(mergekit / "bin" / "mergekit-yaml"), str(path), str(work / "mergekit")]
    if loop is not None:
        script = str(Path(__file__).with_name("torch_loop.py"))
        found["torch loop"] = [sys.executable, script, loop, str(work / "torch loop"), *map(str, folders)]
    if case in ("weight averaging", "task arithmetic"):
        read = experts if case == "weight averaging" else folders
        files = " ".join(str(each / "model.safetensors") for each in read)
        (work / "copy").mkdir(exist_ok=True)
        found["copying the bytes"] = ["bash", "-c", COPY.format(experts=files, base=base, out=work / "copy")]
        found["importing torch"] = [sys.executable, "-c", "import gc; gc.disable(); import torch, os; os._exit(0)"]
    return found


def measure(command: list[str], log: Path) -> tuple[float, float, int]:
    """Processor seconds, wall-clock seconds and highest anonymous bytes of a process and its children."""
    start = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        )
        peak = 0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak = max(peak, _anonymous(process.pid))
            time.sleep(0.005)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - start, peak


def _anonymous(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/status").read_text().split("RssAnon:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return 0


def largest_difference(first: Path, second: Path) -> float | None:
    """Over all numbers of two checkpoints; None where a method draws at random."""
    from twin_merging.checkpoints import Checkpoint

    left, right = Checkpoint(first), Checkpoint(second)
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def mergekit_environment(folder: Path) -> Path:
    """A virtual environment with mergekit, made if it is not there."""
    if not (folder / "bin" / "mergekit-yaml").exists():
        venv.create(folder, with_pip=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--constraint", str(ROOT / "constraints.txt"), MERGEKIT], check=True)
    return folder


def compare(case: str, folders: list[Path], work: Path, mergekit: Path, repeats: int) -> list[dict]:
    """A case's entries of the result."""
    work.mkdir(parents=True, exist_ok=True)
    costs: dict[str, Cost] = {}
    for _ in range(repeats):
        for name, command in commands(case, folders, work, mergekit).items():
            subprocess.run(["rm", "-rf", str(work / name)], check=True)
            if name == "copying the bytes":
                (work / "copy").mkdir(exist_ok=True)
            processor, wall, peak = measure(command, work / f"{name}.log")
            cost = costs.setdefault(name, Cost())
            cost.processor.append(processor)
            cost.wall.append(wall)
            cost.peak.append(peak)
    ours = costs["ours"]
    entries = []
    for name, cost in costs.items():
        entry = {
            "case": case,
            "implementation": name,
            "ratio_to_ours": median(cost.processor) / median(ours.processor),
            "wall_ratio": median(cost.wall) / median(ours.wall),
            "peak_ratio": median(cost.peak) / median(ours.peak),
            "repeats": repeats,
        }
        if name in ("mergekit", "torch loop") and case != "dare":
            entry["error"] = largest_difference(work / "ours", work / name)
        entries.append(entry)
        print(
            f"{case:28} {name:18} time {entry['ratio_to_ours']:6.2f}x  wall {entry['wall_ratio']:6.2f}x  "
            f"memory {entry['peak_ratio']:6.2f}x  difference {entry.get('error', '')}", flush=True,
        )  # fmt: skip
        print(
            f"    {median(cost.processor):.2f} s, {median(cost.wall):.2f} s, {median(cost.peak) / 1e6:.0f} MB",
            file=sys.stderr,
        )
    return entries


def main() -> None:
    """Measure all cases and write FILE."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True, help="where the list of results goes")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="*", default=list(CASES), help="some of: " + "; ".join(CASES))
    parser.add_argument("--work", type=Path, help="folder for checkpoints and results, about 6 GB; kept if given")
    parser.add_argument("--mergekit", type=Path, help="virtual environment with mergekit; made if it is not there")
    parser.add_argument("--svd", action=argparse.BooleanOptionalAction, default=True, help="the decompositions too")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.work or Path(temporary)
        folders = generate(work / "checkpoints", asked.experts)
        mergekit = mergekit_environment(asked.mergekit or work / "mergekit")
        found = [
            entry for case in asked.cases for entry in compare(case, folders, work / "merged", mergekit, asked.repeats)
        ]
        if asked.svd:
            subprocess.run(
                [sys.executable, str(Path(__file__).with_name("svd.py")), "--json", str(work / "svd.json")], check=True
            )
            found += json.loads((work / "svd.json").read_text())
    asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
