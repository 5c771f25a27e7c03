"""What the machine offers, and what a result has to say of where it was made."""

from __future__ import annotations

import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from twin_merging.errors import UserError

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "safetensors", "numpy", "scikit-learn",
    "hydra-core", "omegaconf",
)  # fmt: skip


def resolve_device(name: str) -> torch.device:
    """The device that a config's ``device`` means: ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        UserError: if it is no device, or not there.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError("no device", key="device", found=name, expected="auto, cpu, cuda, cuda:N or mps") from error
    here = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not here.get(device.type, False):
        available = ", ".join(kind for kind, there in here.items() if there)
        raise UserError(
            "this device is not available here", key="device", found=name, expected=f"auto or one of {available}"
        )
    return device


def resolve_precision(name: str, device: str) -> str:
    """``fp32`` or ``bf16``: ``auto`` takes bfloat16 where the processor multiplies it natively."""
    if name != "auto":
        return name
    if device.startswith("cpu") or device == "auto":
        return "bf16" if _cpu_has_bf16() or (device == "auto" and _has_cuda()) else "fp32"
    return "bf16" if device.startswith("cuda") else "fp32"


@lru_cache(maxsize=1)
def package_versions() -> dict[str, str]:
    """The versions of the packages that results depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """The project's commit, with ``-dirty`` where files differ from it; None outside a repository."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_has_bf16() -> bool:
    """avx512_bf16, amx_bf16, or Arm's bf16: without them bfloat16 is emulated and slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def _has_cuda() -> bool:
    return Path("/proc/driver/nvidia/version").exists()
