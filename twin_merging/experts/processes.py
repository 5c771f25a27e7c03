"""Fine-tuning in several processes: ``accelerate launch`` of this module, as a file of ``accelerate config`` says."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twin_merging.errors import UserError, exit_code
from twin_merging.ranks import LOCAL_RANK, OURS, is_first

if TYPE_CHECKING:
    from twin_merging.backbones.causal_lm import CausalLMBackbone
    from twin_merging.tasks.generation import Example

JOB = "job.json"
ON_CPUS = ("MULTI_CPU", "NO")  # there accelerate makes replicas of what should be shards
GATHER = "stage3_gather_16bit_weights_on_model_save"  # what ZeRO 3 needs to save whole weights, of any dtype
DIES_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


def in_processes(
    backbone: CausalLMBackbone, name: str, rows: Sequence[Example], held_out: Sequence[Example],
    options: Any, seed: int, folder: Path, scratch: Path, plugins: Sequence[str] = (),
) -> None:  # fmt: skip
    """Fine-tune by ``options.accelerate``; arguments and what is written are those of ``completions.causal_lora``.

    A step has ``batch_size`` rows over all processes. Where the rows make whole steps, the expert is that of one process up to
    rounding; else the last step of an epoch is filled up with its first rows, and processes matter. If this process dies, they do.

    Raises:
        UserError: if a process fails; what it said has been printed.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    job = {
        "backbone": vars(backbone.options), "weights": str(backbone.folder), "device": backbone.device.type,
        "autocast": backbone.autocast, "name": name, "rows": [asdict(row) for row in rows],
        "held_out": [asdict(row) for row in held_out], "finetune": vars(options), "seed": seed, "folder": str(folder),
        "scratch": str(scratch), "plugins": list(plugins),
    }  # fmt: skip
    (scratch / JOB).write_text(json.dumps(job, ensure_ascii=False), encoding="utf-8")
    launcher, more = _launcher(options.accelerate, backbone.device.type, scratch / "logs")
    process = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", __name__, str(scratch / JOB)], preexec_fn=_die_with_parent, check=False,
        env={**_environment(), **more, OURS: "1"},
    )  # fmt: skip
    if process.returncode:
        raise UserError(
            "training in several processes failed, as it says above", key="finetune.accelerate", found=options.accelerate,
            hint=f"exit code {process.returncode}; the same command goes on from the last whole checkpoint",
        )  # fmt: skip


def settings_of(file: str, device: str) -> dict[str, Any]:
    """What a file of ``accelerate config`` says.

    Args:
        device: the kind that is trained on.

    Raises:
        UserError: if there is no such file, it says nothing of processes, or it asks for what is not here or a CPU cannot do.
    """
    import yaml

    if not Path(file).is_file():
        raise UserError(
            "no such file", key="finetune.accelerate", found=file, expected="a file that `accelerate config` wrote"
        )
    try:
        found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})", key="finetune.accelerate", found=file) from error
    if not isinstance(found, dict) or "num_processes" not in found:
        raise UserError(
            "not a configuration of accelerate", key="finetune.accelerate", found=file, expected="num_processes and more",
            hint="accelerate config --config_file FILE",
        )  # fmt: skip
    if device == "cpu" and found.get("distributed_type") not in ON_CPUS:
        raise UserError(
            "this cannot be done on CPUs", key="finetune.accelerate", found=f"distributed_type {found.get('distributed_type')} in {file}",
            expected="one of " + ", ".join(ON_CPUS), hint="device=cuda",
        )  # fmt: skip
    if found.get("distributed_type") == "DEEPSPEED":
        _check_deepspeed(file, found.get("deepspeed_config") or {})
    return found


def _check_deepspeed(file: str, options: dict[str, Any]) -> None:
    if find_spec("deepspeed") is None:
        raise UserError(
            "DeepSpeed is not installed", key="finetune.accelerate", found=file,
            hint="pip install 'twin_merging[deepspeed]'",
        )  # fmt: skip
    own = options.get("deepspeed_config_file")
    if own is None:
        return
    try:
        zero = json.loads(Path(own).read_text(encoding="utf-8")).get("zero_optimization", {})
    except (OSError, ValueError) as error:
        raise UserError(
            f"deepspeed_config_file cannot be read ({error})", key="finetune.accelerate", found=file
        ) from error
    if zero.get("stage") == 3 and not zero.get(GATHER):
        raise UserError(
            "what is learned could not be saved", key="finetune.accelerate", found=own,
            expected=f'"{GATHER}": true in zero_optimization, where "stage" is 3',
        )  # fmt: skip


def _launcher(file: str, device: str, logs: Path) -> tuple[list[str], dict[str, str]]:
    """accelerate's launcher with its arguments, and its environment."""
    found = settings_of(file, device)
    asked = ["--config_file", file, "--log_dir", str(logs)]
    if found.get("num_machines", 1) == 1 and not found.get("main_process_port"):
        asked += ["--main_process_port", "0"]  # a free one: runs go on beside each other
    own = found.get("deepspeed_config") or {}
    if device == "cpu" and found["num_processes"] > 1:
        asked.append("--multi_gpu")  # without MPI
    if found.get("distributed_type") == "DEEPSPEED" and "deepspeed_config_file" not in own:
        asked += ["--zero3_save_16bit_model", "true"]  # it gathers weights, in their own dtype
    return ["accelerate.commands.launch", *asked], {"ACCELERATE_USE_CPU": "true"} if device == "cpu" else {}


def _die_with_parent() -> None:
    """A run that is killed leaves no processes that train on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGTERM)


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])  # where the package is, if it is not installed
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


def _work(file: Path) -> int:
    """What each process does."""
    import torch

    from twin_merging.backbones.causal_lm import CausalLMBackbone
    from twin_merging.config import CausalLM, finetunings
    from twin_merging.registry import load_plugins
    from twin_merging.tasks.generation import Example

    logging.basicConfig(level=logging.INFO if is_first() else logging.WARNING, format="%(message)s")
    job = json.loads(file.read_text(encoding="utf-8"))
    load_plugins(job["plugins"])
    component = finetunings[job["finetune"]["name"]]
    place = torch.device(f"cuda:{os.environ[LOCAL_RANK]}" if job["device"] == "cuda" else job["device"])
    backbone = CausalLMBackbone(CausalLM(**job["backbone"]), Path(job["weights"]), place, job["autocast"])
    rows, held_out = ([Example(**row) for row in job[key]] for key in ("rows", "held_out"))
    options, folder, scratch = component.options(**job["finetune"]), Path(job["folder"]), Path(job["scratch"])
    component.load()(backbone, job["name"], rows, held_out, options, job["seed"], folder, scratch)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # the first one writes
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(lambda: _work(Path(sys.argv[1])), "the last whole checkpoint stays"))
